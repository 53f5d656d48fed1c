"""`Study`: one examination, its image paths and its text. Knows no pixels, no tokenizer and no model.

A master file is JSONL, one study a line. Unknown keys survive a round trip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast

from hf_medvlm.data import fields as values_of
from hf_medvlm.data.fields import ALL_TEXT, Triplets, Turns, section_alternatives
from hf_medvlm.data.files import atomic_open, open_text, read_json
from hf_medvlm.errors import clipped
from hf_medvlm.labels import SPLITS

if TYPE_CHECKING:
    import datasets

FRONTAL_VIEWS = ("PA", "AP")


def check_relative_path(path: str) -> str:
    """Return `path` if it stays inside the image folder; `ValueError` where it is absolute or climbs with `..`."""
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"an image path must be a non-empty text, got {path!r:.300}")
    pure, windows = PurePosixPath(path), PureWindowsPath(path)
    if "\0" in path or len(path) > 4000 or any(len(part.encode("utf-8", "replace")) > 255 for part in pure.parts):
        raise ValueError(f"image path {path!r:.100} is longer than any file's, or holds a NUL")
    if pure.is_absolute() or windows.drive or windows.root or ".." in pure.parts or ".." in windows.parts:
        raise ValueError(
            f"image path {path!r:.300} leaves the image folder; write paths relative to --image_folder, without '..'"
        )
    return path


@dataclass(frozen=True)
class StudyImage:
    """One image: `path` relative to the image folder, `view` PA, AP, LATERAL, LL, ... or None where unknown."""

    path: str
    view: str | None = None

    def __post_init__(self) -> None:
        check_relative_path(self.path)
        if self.view is not None and not isinstance(self.view, str):
            raise ValueError(f"image {self.path!r:.100}: a view is text such as PA or LATERAL, got {self.view!r:.100}")

    @property
    def is_frontal(self) -> bool:
        """True for PA and AP, and where the view is unknown (corpora without views are mostly frontal)."""
        return self.view is None or self.view.upper() in FRONTAL_VIEWS


@dataclass(frozen=True)
class StudyBox:
    """A located phrase.

    `image` indexes `Study.images`; `xywh` is left, top, width, height in pixels of the stored image; `finding` is the
    CheXpert name of what the box holds, where it is known.
    """

    image: int
    phrase: str
    xywh: tuple[float, float, float, float]
    finding: str | None = None

    def __post_init__(self) -> None:
        for name in ("phrase", "finding"):
            if not isinstance(getattr(self, name), str) and (name == "phrase" or self.finding is not None):
                raise ValueError(f"a box's {name} must be text, got {getattr(self, name)!r:.100}")
        if len(self.xywh) != 4 or not all(map(math.isfinite, self.xywh)):
            raise ValueError(f"box {self.phrase!r:.100}: xywh must be four finite numbers, got {self.xywh!r:.100}")
        x, y, w, h = self.xywh
        if not (x >= 0 and y >= 0 and w > 0 and h > 0):
            raise ValueError(
                f"box {self.phrase!r:.100}: xywh must be left, top >= 0 and width, height > 0, got {self.xywh}"
            )


@dataclass(frozen=True)
class Study:
    """One examination of one patient. Frozen, checked on creation.

    Args:
        labels: CheXpert name (or any other finding) -> 1 present, 0 absent, -1 uncertain, None not mentioned.
        study_date: ISO 8601 date or date and time, where the corpus has one; orders the studies of a patient.
        comparison: what the report says of the examinations that it was compared with.
        conversations: questions and answers about the images, `{"from": "human" or "gpt", "value": text}`; the images
            stand in the order of the `<image>` marks.
        triplets: (entity, position, "present", "absent" or "uncertain") of each mention in the report; None where
            nobody has looked, () where somebody has and there is none.
        progression: finding -> improving, stable or worsening, since the prior study.
        answer_type: of a question's answer, CLOSED or OPEN; else "".
        extra: keys of the master file that are not ours; kept as they are.

    Raises:
        ValueError: an empty id, a path that leaves the image folder, an unknown split, a label that is no state, a box
            on an image that is not there, a field of another type. The message names the study.
    """

    study_id: str
    patient_id: str
    split: str | None = None
    images: tuple[StudyImage, ...] = ()
    findings: str = ""
    impression: str = ""
    report: str = ""
    indication: str = ""
    labels: Mapping[str, int | None] = field(default_factory=dict)
    prior_study_id: str | None = None
    study_date: str | None = None
    boxes: tuple[StudyBox, ...] = ()
    source: str = ""
    licence: str = ""
    comparison: str = ""
    conversations: Turns = ()
    triplets: Triplets | None = None
    progression: Mapping[str, str] = field(default_factory=dict)
    answer_type: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.study_id or not self.patient_id:
            raise ValueError(
                f"a study needs a study_id and a patient_id, got {self.study_id!r:.100} and {self.patient_id!r:.100}"
            )
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"study {self.study_id!r:.100}: {error}") from error

    def _check(self) -> None:
        for name in TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r:.100}")
        if self.prior_study_id is not None and not isinstance(self.prior_study_id, str):
            raise ValueError(f"prior_study_id must be text, got {self.prior_study_id!r:.100}")
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"split {self.split!r:.100} is none of {', '.join(SPLITS)}")
        for name, state in self.labels.items():
            if state is not None and (isinstance(state, bool) or state not in (-1, 0, 1)):
                raise ValueError(
                    f"label {name!r:.100} is {state!r:.100}; use 1 present, 0 absent, -1 uncertain or null not "
                    f"mentioned"
                )
        for box in self.boxes:
            if not 0 <= box.image < len(self.images):
                raise ValueError(
                    f"box {box.phrase!r:.100} is on image {box.image}, but the study has {len(self.images)} image(s)"
                )
        if self.conversations:
            values_of.conversation(self.conversations)
        if self.triplets:
            values_of.triplets(self.triplets)
        if self.progression:
            values_of.progression(self.progression)
        if self.answer_type:
            values_of.answer_type(self.answer_type)
        if self.extra and not FIELDS.isdisjoint(self.extra):
            name = min(FIELDS & set(self.extra))
            raise ValueError(f"{name!r:.100} is a field of a study and may not stand in extra")

    @property
    def frontal(self) -> StudyImage | None:
        """The first frontal image, or the first image where no view is frontal, or None without images."""
        return next((image for image in self.images if image.is_frontal), self.images[0] if self.images else None)

    def frontal_boxes(self) -> list[StudyBox]:
        """The boxes on the frontal image."""
        return [box for box in self.boxes if self.images[box.image] == self.frontal]

    def text(self, sections: str | Sequence[str] = ALL_TEXT) -> str:
        """The named sections that are not empty, in this order, joined by a space; "" where there is none.

        No other section takes their place. A fallback is asked for by name: `"findings,impression|report"` is the
        whole report of a study that has neither findings nor impression.

        Raises:
            ValueError: a section that a study does not have; the message names those there are.
        """
        names = self.text_source(sections)
        return " ".join(part for name in names if (part := getattr(self, name).strip()))

    def text_source(self, sections: str | Sequence[str] = ALL_TEXT) -> tuple[str, ...]:
        """The first alternative of `sections` of which the study has any text; () where it has none."""
        for names in section_alternatives(sections if isinstance(sections, str) else tuple(sections)):
            if any(getattr(self, name).strip() for name in names):
                return names
        return ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Study:
        """Build from one decoded JSON object (see `read_jsonl` for errors with file and line).

        Numbers as ids become text ("123.0" too is "123"), and dates ISO 8601.

        Raises:
            ValueError: something other than an object, a missing id, or anything that `Study` refuses.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"a study is a JSON object, got {type(record).__name__}")
        ids = {name: values_of.id_text(record.get(name), name) for name in ("study_id", "patient_id")}
        missing = [name for name, value in ids.items() if not value]
        if missing:
            keys = clipped(", ".join(map(str, record))) or "none"
            raise ValueError(f"missing {' and '.join(missing)}; found keys: {keys}")
        try:
            values: dict[str, Any] = {
                key: READERS[key](value) if key in READERS else value
                for key, value in record.items()
                if key in FIELDS and value is not None
            }
        except ValueError as error:
            raise ValueError(f"study {ids['study_id']!r:.100}: {error}") from error
        extra = {key: value for key, value in record.items() if key not in FIELDS}
        return cls(**{**values, **ids, "extra": extra})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this study: our keys in a fixed order, then the unknown ones as they came."""
        return {
            "study_id": self.study_id,
            "patient_id": self.patient_id,
            "split": self.split,
            "images": [{"path": i.path, "view": i.view} for i in self.images],
            "findings": self.findings,
            "impression": self.impression,
            "report": self.report,
            "indication": self.indication,
            "labels": dict(self.labels),
            "prior_study_id": self.prior_study_id,
            "study_date": self.study_date,
            "boxes": [
                {"image": b.image, "phrase": b.phrase, "xywh": list(b.xywh)}
                | ({"finding": b.finding} if b.finding else {})
                for b in self.boxes
            ],
            "source": self.source,
            "licence": self.licence,
            **self.optional_fields(),
            **self.extra,
        }

    def optional_fields(self) -> dict[str, Any]:
        """The optional fields that this study has, as JSON writes them."""
        written = {
            "comparison": self.comparison,
            "conversations": [dict(turn) for turn in self.conversations],
            "triplets": None if self.triplets is None else [list(triplet) for triplet in self.triplets],
            "progression": dict(self.progression),
            "answer_type": self.answer_type,
        }
        return {name: value for name, value in written.items() if value or (name == "triplets" and value is not None)}


FIELDS = frozenset(f.name for f in fields(Study)) - {"extra"}
TEXTS = ("study_id", "patient_id", "findings", "impression", "report", "indication", "source", "licence", "comparison")


def _read_images(value: Any) -> tuple[StudyImage, ...]:
    try:
        return tuple(StudyImage(image["path"], image.get("view") or None) for image in value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"images are [{{path, view}}]; could not read {value!r:.100}") from error


def _read_boxes(value: Any) -> tuple[StudyBox, ...]:
    try:
        return tuple(
            StudyBox(
                int(_number(b["image"], whole=True)),
                b["phrase"],
                cast(Any, tuple(map(_number, b["xywh"]))),
                b.get("finding"),
            )
            for b in value
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"boxes are [{{image, phrase, xywh}}]; could not read {value!r:.100}: {error!r:.100}"
        ) from error


def _number(value: Any, whole: bool = False) -> float:
    """A number, or a text that stands for one."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or (whole and not number.is_integer()):
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"boxes are [{{image, phrase, xywh}}]; {wanted} is wanted, not {value!r:.100}")
    return number


def _read_prior(value: Any) -> str | None:
    return values_of.id_text(value, "prior_study_id") or None


def _read_date(value: Any) -> str | None:
    text = values_of.plain_text(value, "study_date").strip()
    try:
        return values_of.iso_date(text) if text else None
    except ValueError as error:
        raise ValueError(f"study_date {error}") from error


READERS: Mapping[str, Callable[[Any], Any]] = {
    "images": _read_images,
    "boxes": _read_boxes,
    "prior_study_id": _read_prior,
    "study_date": _read_date,
    "labels": values_of.label_states,
    "conversations": values_of.conversation,
    "triplets": values_of.triplets,
    "progression": values_of.progression,
    "answer_type": values_of.answer_type,
}
"""How the value of a JSON key becomes a field's; a key that is not here holds text, which `Study` checks."""


def iter_jsonl(path: str | Path) -> Iterator[tuple[int, Study | ValueError]]:
    """Yield (line number, study) and, for a line that cannot be one, (line number, the error that says why)."""
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                record = read_json(line, path, number)
            except ValueError as error:
                yield number, error
                continue
            try:
                yield number, Study.from_dict(record)
            except ValueError as error:
                yield number, ValueError(f"{path}:{number}: {error}")


def read_jsonl(path: str | Path) -> list[Study]:
    """All studies of a master file.

    Raises:
        ValueError: the first bad line, with file and line; a study id that stands twice, with both lines.
    """
    studies: list[Study] = []
    lines: dict[str, int] = {}
    for number, study in iter_jsonl(path):
        if isinstance(study, ValueError):
            raise study
        if study.study_id in lines:
            raise ValueError(
                f"{path}:{number}: study_id {study.study_id!r:.100} stands already on line {lines[study.study_id]}"
            )
        lines[study.study_id] = number
        studies.append(study)
    return studies


def write_jsonl(studies: Iterable[Study], path: str | Path) -> int:
    """Write a master file, whole or not at all, deterministic to the byte; return the number of studies."""
    count = 0
    with atomic_open(path) as handle:
        for study in studies:
            handle.write(json.dumps(study.to_dict(), ensure_ascii=False) + "\n")
            count += 1
    return count


def to_dataset(studies: Iterable[Study]) -> datasets.Dataset:
    """An Arrow table of studies, one row each; `from_row` gives the study back.

    Arrow wants one type a column, so labels become a list of (finding, state), and optional fields and unknown keys
    one JSON text.
    """
    import datasets

    text, integer = datasets.Value("string"), datasets.Value("int8")
    features = datasets.Features(
        {key: text for key in ("study_id", "patient_id", "split", "findings", "impression", "report", "indication")}
        | {
            "images": [{"path": text, "view": text}],
            "labels": [{"finding": text, "state": integer}],
            "prior_study_id": text,
            "study_date": text,
            "boxes": [
                {"image": datasets.Value("int32"), "phrase": text, "xywh": [datasets.Value("float32")], "finding": text}
            ],
            "source": text,
            "licence": text,
            "extra": text,
        }
    )
    columns: dict[str, list] = {key: [] for key in features}
    for study in studies:
        record = study.to_dict()
        record["labels"] = [{"finding": n, "state": s} for n, s in study.labels.items()]
        record["boxes"] = [{"finding": None} | box for box in record["boxes"]]
        record["extra"] = json.dumps(study.optional_fields() | dict(study.extra), ensure_ascii=False)
        for key in columns:
            columns[key].append(record[key])
    return datasets.Dataset.from_dict(columns, features=features)


def from_row(row: Mapping[str, Any] | Study) -> Study:
    """The study of one row of `to_dataset` (a study is returned as it is)."""
    if isinstance(row, Study):
        return row
    record = dict(row)
    record["labels"] = {pair["finding"]: pair["state"] for pair in row["labels"]}
    record |= json.loads(record.pop("extra") or "{}")
    return Study.from_dict(record)
