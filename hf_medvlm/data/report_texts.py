"""Reports by study, of any system: from a run's folder, a master file, a table of any kind, or ReXrank's JSON.

Two such files, one of references and one of predictions, become pairs; whatever has no partner is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_medvlm.data.fields import ALL_TEXT, id_text, section_alternatives
from hf_medvlm.data.files import load_json, open_text, read_json
from hf_medvlm.data.sources.base import Rejected, require_columns
from hf_medvlm.data.sources.columns import FREE_TEXT, NAMES, plain_name
from hf_medvlm.data.sources.rows import table_rows
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.errors import clipped

REFERENCE, PREDICTION = "reference", "prediction"
TEXT_NAMES = {  # of columns that hold nothing else, as `plain_name` writes them, the surest first
    REFERENCE: tuple("reference referencereport groundtruth groundtruthreport gt gtreport target references".split()),
    PREDICTION: tuple(
        """prediction modelprediction predictedreport generatedreport generated generation hypothesis hyp candidate
        output predictions pred""".split()
    ),
}
STUDY_NAMES = (*NAMES["study_id"], "id", "imageid", "dicomid")
STOP, SKIP, EMPTY = "stop", "skip", "empty"
MISSING = (STOP, SKIP, EMPTY)
SHOWN = 5  # ids named in a message


@dataclass(frozen=True)
class ReportTexts:
    """The reports of one file.

    Args:
        texts, patients, images, places: by study id; `places` say file and line.
        saw_prior: study id -> whether its earlier study was shown when the report was written, where the file says so.
        records: ReXrank's JSON as it came, None for any other file.
        image_folder: where image paths start, where the file says so.
        notes: what was guessed, for the user to check.
    """

    path: str
    texts: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    images: dict[str, tuple[StudyImage, ...]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    saw_prior: dict[str, bool] = field(default_factory=dict)
    records: dict[str, Any] | None = None
    image_folder: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pairs:
    """References and predictions of the same studies, in the references' order; `left_out` is named in `notes`."""

    studies: list[Study]
    references: list[str]
    predictions: list[str]
    saw_prior: list[bool | None]
    left_out: list[Rejected]
    notes: list[str]


def read_reports(
    path: str | Path,
    side: str,
    column: str | None = None,
    id_column: str | None = None,
    patient_column: str | None = None,
    sections: str = ALL_TEXT,
    split: str | None = None,
    labelled: bool = False,
) -> ReportTexts:
    """The reports of a file.

    Args:
        path: a run's folder (its predictions.jsonl), JSON Lines, a CSV or other table, a master file, ReXrank's JSON.
        side: `REFERENCE` or `PREDICTION`: which column is looked for where none is named.
        column, id_column, patient_column: names of columns; by default those that are commonly used.
        sections: of references that stand in columns of sections.
        split: only studies of this split.
        labelled: sections as ReXrank writes them, "Findings: ... Impression: ...".

    Raises:
        ValueError: no such file, a broken line, no column of texts or ids, an id that stands twice, nothing left.
    """
    named, path, image_folder = str(path), Path(path), None
    if path.is_dir():
        path, image_folder = _of_run(path)
    notes: list[str] = []
    rows, records = _rows(path, notes)
    texts = ReportTexts(named, records=records, image_folder=image_folder, notes=notes)
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    require_columns(path, columns, [name for name in (column, id_column, patient_column) if name])
    by_name = {plain_name(name): name for name in reversed(columns)}
    study = id_column or _first(by_name, STUDY_NAMES)
    if study is None:
        raise ValueError(
            f"{path}: no column of study ids; name it with --id_column (columns: {clipped(', '.join(columns))})"
        )
    text = _texts(path, side, column, by_name, sections, labelled, records is not None)
    patient = patient_column or _first(by_name, NAMES["patient_id"])
    if split is not None and "split" not in columns:
        raise ValueError(
            f"{path}: no column 'split', so --split {clipped(split)} finds nothing "
            f"(columns: {clipped(', '.join(columns))})"
        )
    twice: list[str] = []
    for place, row in rows:
        if split is not None and str(row.get("split")) != split:
            continue
        name = _id(row.get(study), study, place)
        if name in texts.texts:
            twice.append(f"{name} ({texts.places[name].rpartition(':')[2]}, {place.rpartition(':')[2]})")
            continue
        texts.texts[name], texts.places[name] = text(row, place), place
        texts.patients[name] = _id(row.get(patient), patient, place, needed=False) if patient else ""
        texts.images[name] = _images(row)
        if isinstance(row.get("saw_prior"), bool):
            texts.saw_prior[name] = row["saw_prior"]
    if twice:
        raise ValueError(
            f"{path}: {len(twice)} study id(s) stand twice, with the lines: {_some(twice)}; keep one of each, or name "
            f"another column with --id_column (now {study!r})"
        )
    if not texts.texts:
        raise ValueError(f"{path}: no report in it" + (f" of split {split!r:.100}" if split else ""))
    return texts


def pair_reports(references: ReportTexts, predictions: ReportTexts, missing: str = STOP) -> Pairs:
    """Bring the two together by study id.

    A prediction without a reference and a study with an empty reference are left out and named. An empty prediction
    stays, and scores as one.

    Args:
        missing: what becomes of a reference without a prediction: `STOP` names them and stops, `SKIP` leaves them out,
            `EMPTY` scores them as empty reports.

    Raises:
        ValueError: no id is in both files, references without predictions (with `STOP`), or nothing to score.
    """
    notes = list(dict.fromkeys([*references.notes, *predictions.notes]))
    left_out: list[Rejected] = []
    absent = [name for name in references.texts if name not in predictions.texts]
    if len(absent) == len(references.texts):
        raise ValueError(
            f"no study id of {references.path} (such as {_some(list(references.texts), 2)}) stands in "
            f"{predictions.path} (such as {_some(list(predictions.texts), 2)}); name the columns with --id_column"
        )
    if absent and missing == STOP:
        raise ValueError(
            f"{len(absent)} of {len(references.texts)} references have no prediction: {_some(absent)}; --missing skip "
            "leaves them out, --missing empty scores them as empty reports, --split takes one split of the references"
        )
    unknown = [name for name in predictions.texts if name not in references.texts]
    blank = [name for name, text in references.texts.items() if not text.strip()]
    for names, source, reason in (
        (absent if missing == SKIP else [], references, "no prediction"),
        (unknown, predictions, "no reference"),
        (blank, references, "empty reference"),
    ):
        left_out += [Rejected(*_place(source.places[name]), name, reason) for name in names]
        if names:
            notes.append(f"left out, {reason}: {len(names)}: {_some(names)}")
    kept = [n for n in references.texts if n not in set(blank) and (missing == EMPTY or n in predictions.texts)]
    if not kept:
        raise ValueError(f"{references.path}: every reference that has a prediction is empty")
    predicted = [predictions.texts.get(name, "") for name in kept]
    empty = [name for name, text in zip(kept, predicted, strict=True) if not text.strip()]
    if empty:
        notes.append(f"empty predictions, scored as they are: {len(empty)}: {_some(empty)}")
    patients = [references.patients[name] or predictions.patients.get(name, "") for name in kept]
    if not all(patients):
        notes.append("patients are not known of every study; a study without one counts as a patient of its own")
    return Pairs(
        studies=[
            Study(name, patient or name, images=references.images[name] or predictions.images.get(name, ()))
            for name, patient in zip(kept, patients, strict=True)
        ],
        references=[references.texts[name] for name in kept],
        predictions=predicted,
        saw_prior=[predictions.saw_prior.get(name) for name in kept],
        left_out=left_out,
        notes=notes,
    )


def rexrank_text(findings: str, impression: str) -> str:
    """A study's report as ReXrank writes it; a section that is empty is left out."""
    parts = (("Findings", findings.strip()), ("Impression", impression.strip()))
    return " ".join(f"{name}: {text}" for name, text in parts if text)


def _of_run(folder: Path) -> tuple[Path, Path | None]:
    """`predictions.jsonl` of a run's folder, and where its images lie, if the run says so."""
    lines, described = folder / "predictions.jsonl", folder / "run.json"
    if not lines.is_file():
        raise ValueError(f"{folder}: no predictions.jsonl in it; name a run's folder or a file of reports")
    info = load_json(described, dict) if described.is_file() else {}
    place = info.get("image_folder")
    if not isinstance(place, (str, type(None))):
        raise ValueError(f"{described}: 'image_folder' must be a text, found {clipped(place)}")
    return lines, Path(place) if place else None


def _rows(path: Path, notes: list[str]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any] | None]:
    """(place, row) of every row, and the records of ReXrank's JSON where the file is one."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file or run")
    if path.suffix.lower() == ".json":
        with open_text(path) as handle:
            content = read_json(handle.read(), path)
        if _is_by_study(content):
            rows = [
                (f"{path}:{name}", {"study_id": name} | (record if isinstance(record, dict) else {"text": record}))
                for name, record in content.items()
            ]
            return rows, content if all(isinstance(record, dict) for record in content.values()) else None
    rejected: list[Rejected] = []
    places = [(f"{file}:{line}", row) for file, line, row in table_rows(str(path), None, rejected, notes)]
    if rejected:
        raise ValueError(f"{path}: {len(rejected)} broken line(s); the first: {rejected[0]}")
    if not places:
        raise ValueError(f"{path}: no rows in it")
    return places, None


def _is_by_study(content: Any) -> bool:
    """Whether a JSON document is study id -> record or text, and no table column by column."""
    if not isinstance(content, dict) or not content:
        return False
    values = list(content.values())
    if all(isinstance(value, str) for value in values):
        return True
    known = {*(name for names in TEXT_NAMES.values() for name in names), *FREE_TEXT}
    known |= {name for section in ("findings", "impression", "report") for name in NAMES[section]}
    columns = all(plain_name(name) in known | {*STUDY_NAMES, *NAMES["patient_id"]} for name in content)
    return all(isinstance(value, dict) for value in values) and not columns


def _texts(
    path: Path, side: str, column: str | None, by_name: Mapping[str, str], sections: str, labelled: bool, rexrank: bool
) -> Any:
    """The function of (row, place) that gives a row's text."""
    column = column or _first(by_name, TEXT_NAMES[side])
    parts = {name: _first(by_name, NAMES[name]) for name in ("findings", "impression", "report")}
    if column is None and (side == PREDICTION and (rexrank or by_name.keys() & set(TEXT_NAMES[REFERENCE]))):
        raise ValueError(
            f"{path}: no model_prediction in it, only references; name the column with --prediction_column "
            f"(columns: {clipped(', '.join(by_name.values()))})"
        )
    if column is None and not any(parts.values()):
        column = _first(by_name, FREE_TEXT)
        if column is None:
            raise ValueError(
                f"{path}: no column that is known to hold a {side}; name it with --{side}_column "
                f"(columns: {clipped(', '.join(by_name.values()))})"
            )
    if column is not None:
        return lambda row, place: _text(row.get(column), column, place)
    alternatives = section_alternatives(sections)

    def joined(row: Mapping[str, Any], place: str) -> str:
        texts = {name: _text(row.get(where), where, place) if where else "" for name, where in parts.items()}
        if labelled and (texts["findings"].strip() or texts["impression"].strip()):
            return rexrank_text(texts["findings"], texts["impression"])
        for names in alternatives:
            chosen = [text for name in names if (text := texts.get(name, "").strip())]
            if chosen:
                return " ".join(chosen)
        return ""

    return joined


def _text(value: Any, column: str, place: str) -> str:
    if value is None or value != value:  # an empty cell of a table
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: {column} must be text, got {value!r:.100}")
    return value


def _id(value: Any, column: str, place: str, needed: bool = True) -> str:
    try:
        name = id_text(value, column)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if needed and not name:
        raise ValueError(f"{place}: no id in column {column!r:.100}")
    return name


def _images(row: Mapping[str, Any]) -> tuple[StudyImage, ...]:
    """The images that a line of ours or of ReXrank names, for the page; none for a table, or where a path leaves the
    image folder: the texts are scored all the same."""
    value = row.get("images") or row.get("image_path")
    if not isinstance(value, list):
        return ()
    images = []
    for image in value:
        path, view = (image.get("path"), image.get("view")) if isinstance(image, dict) else (image, None)
        if not isinstance(path, str):
            return ()
        path = path.removeprefix("./").lstrip("/") if "image_path" in row else path
        try:
            images.append(StudyImage(path, view))
        except ValueError:
            return ()
    return tuple(images)


def _first(by_name: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((by_name[name] for name in names if name in by_name), None)


def _place(place: str) -> tuple[str, int | None]:
    file, _, line = place.rpartition(":")
    return file, int(line) if line.isdecimal() else None


def _some(names: Sequence[str], most: int = SHOWN) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return clipped(", ".join(names[:most])) + more
