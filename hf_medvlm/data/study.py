"""`Study`: one examination, its image paths and its text. Knows no pixels, no tokenizer and no model.

A master file is JSONL, one study a line (section 3 of the design). Unknown keys survive a round trip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.labels import SPLITS

if TYPE_CHECKING:
    import datasets

FRONTAL_VIEWS = ("PA", "AP")


def check_relative_path(path: str) -> str:
    """Return `path` if it stays inside the image folder; `ValueError` where it is absolute or climbs with `..`."""
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"an image path must be a non-empty text, got {path!r}")
    pure, windows = PurePosixPath(path), PureWindowsPath(path)
    if pure.is_absolute() or windows.drive or windows.root or ".." in pure.parts or ".." in windows.parts:
        raise ValueError(
            f"image path {path!r} leaves the image folder; write paths relative to --image_folder, without '..'"
        )
    return path


@dataclass(frozen=True)
class StudyImage:
    """One image: `path` relative to the image folder, `view` PA, AP, LATERAL, LL, ... or None where unknown."""

    path: str
    view: str | None = None

    def __post_init__(self) -> None:
        check_relative_path(self.path)

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
        x, y, w, h = self.xywh
        if not (x >= 0 and y >= 0 and w > 0 and h > 0):
            raise ValueError(f"box {self.phrase!r}: xywh must be left, top >= 0 and width, height > 0, got {self.xywh}")


@dataclass(frozen=True)
class Study:
    """One examination of one patient. Frozen, checked on creation.

    Args:
        labels: CheXpert name (or any other finding) -> 1 present, 0 absent, -1 uncertain, None not mentioned.
        study_date: ISO 8601 date or date and time, where the corpus has one; orders the studies of a patient.
        extra: keys of the master file that are not ours; kept as they are.

    Raises:
        ValueError: an empty id, a path that leaves the image folder, an unknown split, a label that is no state,
            a box on an image that is not there. The message names the study.
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
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.study_id or not self.patient_id:
            raise ValueError(
                f"a study needs a study_id and a patient_id, got {self.study_id!r} and {self.patient_id!r}"
            )
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"study {self.study_id!r}: split {self.split!r} is none of {', '.join(SPLITS)}")
        for name, state in self.labels.items():
            if state is not None and (isinstance(state, bool) or state not in (-1, 0, 1)):
                raise ValueError(
                    f"study {self.study_id!r}: label {name!r} is {state!r}; "
                    "use 1 present, 0 absent, -1 uncertain or null not mentioned"
                )
        for box in self.boxes:
            if not 0 <= box.image < len(self.images):
                raise ValueError(
                    f"study {self.study_id!r}: box {box.phrase!r} is on image {box.image}, "
                    f"but the study has {len(self.images)} image(s)"
                )

    @property
    def frontal(self) -> StudyImage | None:
        """The first frontal image, or the first image where no view is frontal, or None without images."""
        return next((image for image in self.images if image.is_frontal), self.images[0] if self.images else None)

    def text(self, sections: Iterable[str] = ("findings", "impression")) -> str:
        """The named sections that are not empty, joined by a space; where there are none, the report or the others."""
        for names in (sections, ("report",), ("findings", "impression")):
            parts = [getattr(self, name).strip() for name in names]
            if any(parts):
                return " ".join(part for part in parts if part)
        return ""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Study:
        """Build from one decoded JSON object (see `read_jsonl` for errors with file and line).

        Raises:
            ValueError: something other than an object, a missing id, or anything that `Study` refuses.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"a study is a JSON object, got {type(record).__name__}")
        missing = [key for key in ("study_id", "patient_id") if not record.get(key)]
        if missing:
            raise ValueError(f"missing {' and '.join(missing)}; found keys: {', '.join(map(str, record)) or 'none'}")
        known = {f.name for f in fields(cls)} - {"extra"}
        values = {key: record[key] for key in record if key in known and record[key] is not None}
        for key in ("findings", "impression", "report", "indication"):
            if not isinstance(values.get(key, ""), str):
                raise ValueError(f"study {record['study_id']!r}: {key} must be text, got {values[key]!r}")
        values["study_id"], values["patient_id"] = str(record["study_id"]), str(record["patient_id"])
        try:
            values["images"] = tuple(StudyImage(i["path"], i.get("view") or None) for i in values.get("images", ()))
            values["boxes"] = tuple(
                StudyBox(int(b["image"]), b["phrase"], tuple(map(float, b["xywh"])), b.get("finding"))
                for b in values.get("boxes", ())
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"study {record['study_id']!r}: images are [{{path, view}}] and boxes [{{image, phrase, xywh}}]; "
                f"could not read {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"study {record['study_id']!r}: {error}") from error
        labels = values.get("labels", {})
        if not isinstance(labels, Mapping):
            raise ValueError(f"study {record['study_id']!r}: labels must be an object, got {type(labels).__name__}")
        values["labels"] = {n: int(s) if isinstance(s, float) and s.is_integer() else s for n, s in labels.items()}
        values["extra"] = {key: record[key] for key in record if key not in known}
        return cls(**values)

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
            **self.extra,
        }


def iter_jsonl(path: str | Path) -> Iterator[tuple[int, Study | ValueError]]:
    """Yield (line number, study) and, for a line that cannot be one, (line number, the error that says why)."""
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield number, Study.from_dict(json.loads(line))
            except json.JSONDecodeError as error:
                yield number, ValueError(f"{path}:{number}: not JSON at column {error.colno}: {error.msg}")
            except ValueError as error:
                yield number, ValueError(f"{path}:{number}: {error}")


def read_jsonl(path: str | Path) -> list[Study]:
    """All studies of a master file.

    Raises:
        ValueError: the first bad line, with file and line; a study id that stands twice, with both lines.
    """
    studies, lines = [], {}
    for number, study in iter_jsonl(path):
        if isinstance(study, ValueError):
            raise study
        if study.study_id in lines:
            raise ValueError(
                f"{path}:{number}: study_id {study.study_id!r} stands already on line {lines[study.study_id]}"
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
    """An Arrow table of studies, one row each; `Study.from_dict` of `from_row` gives the study back.

    Arrow wants one type a column, so labels become a list of (finding, state) and unknown keys one JSON text.
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
        record["extra"] = json.dumps(dict(study.extra), ensure_ascii=False)
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
