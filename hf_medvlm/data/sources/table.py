"""Any table with an image column and one or more text columns -> studies: CSV, TSV, JSONL, Parquet, a Hub data set.

Reads no pixels. Knows no corpus; those with a layout of their own have their own files beside this one.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_medvlm.data.fields import SPLIT_NAMES
from hf_medvlm.data.files import open_text
from hf_medvlm.data.sources.base import (
    Corpus,
    EntryError,
    Rejected,
    link_priors,
    parse_date,
    parse_path,
    parse_state,
    read_csv,
    require_columns,
)
from hf_medvlm.data.sources.hub import hub_rows
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.labels import CHEXPERT_14

logger = logging.getLogger(__name__)

SECTIONS = ("findings", "impression", "report", "indication")

_PICKED_UP = ("view", "indication", "prior_study_id", "source", "licence")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

_Entry = tuple[str, int, dict[str, Any]]  # file, line, row


def read_table(
    path: str | Path,
    image_column: str = "image",
    text_columns: str | Sequence[str] | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    date_column: str | None = None,
    image_folder: str | Path | None = None,
    cache_folder: str | Path | None = None,
    seed: int = 0,
) -> tuple[list[Study], list[Rejected]]:
    """Read a table into studies that all have a split, and the rows that could not be taken, with file and line.

    Rows that agree in patient, `study_id`, text and all else but the image are one study with several images; those of
    one `study_id` that disagree are studies of their own. A text column named findings, impression, report or
    indication fills that section. One with another name is free text: it fills `report`, or, beside a findings or
    impression column (which hide the report from `Study.text`), adds to `findings`.

    The columns patient_id, study_id, split, study_date, view, indication, labels, prior_study_id, source, licence and
    those named as CheXpert's 14 findings are picked up where they are there. `labels` is a JSON object of states, or
    the names of what is present, divided by comma, semicolon or bar.

    Args:
        path: a .csv, .tsv or .jsonl file (also .gz), a .parquet file, a folder that `datasets` reads, or a Hub id.
        text_columns: names, or one text with commas; without it those of findings, impression, report that are there.
        patient_column: without it, and without a column `patient_id`, the split is by study, with a warning.
        split_column: without it a column `split` (or the data set's own splits) is taken if it holds nothing but names
            of train, validate and test, train among them; else the split is by patient, from a hash and `seed`.
        date_column: orders a patient's studies and links each to its prior.
        image_folder: paths are relative to it; absolute ones inside it are made so.
        cache_folder: where images that lie inside a data set are exported; their paths are relative to it.

    Raises:
        ValueError: with file and line where there is one: no such file, unknown column (with its neighbour), a broken
            file, a named split column with other words in it, no text in any row, no good row at all.
    """
    corpus = load_table(
        path, image_column, text_columns, patient_column, split_column, date_column, image_folder, cache_folder
    )
    return assign_splits(link_priors(corpus.studies), seed), corpus.rejected


def load_table(
    path: str | Path,
    image_column: str = "image",
    text_columns: str | Sequence[str] | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    date_column: str | None = None,
    image_folder: str | Path | None = None,
    cache_folder: str | Path | None = None,
    needs_text: bool = True,
) -> Corpus:
    """`read_table` before priors are linked and splits are drawn: what `prepare_data` checks first.

    Args:
        needs_text: a row without a text is left out, and a table without a text column is refused; False where a
            trained model is to write the text.
    """
    path, rejected = str(path), []
    rows = list(_rows(path, image_column, image_folder, cache_folder, rejected))
    columns = list(dict.fromkeys(name for _, _, row in rows for name in row))
    sections = _sections(path, columns, text_columns) if needs_text or text_columns else {}
    patient_column = patient_column or ("patient_id" if "patient_id" in columns else None)
    date_column = date_column or ("study_date" if "study_date" in columns else None)
    used = [image_column, *sections, *(name for name in (patient_column, date_column, split_column) if name)]
    require_columns(path, columns, used)
    split_column = _usable_split_column(rows, split_column, columns)

    picked = [name for name in _PICKED_UP if name in columns and name not in used]
    picked_labels = [name for name in ("labels", *CHEXPERT_14) if name in columns and name not in used]
    if picked or picked_labels:
        logger.info("%s: also taking %s", path, ", ".join(picked + picked_labels))
    entries = []
    for file, line, row in rows:
        study_id = _text(row.get("study_id")) or None
        try:
            image = parse_path(_text(row.get(image_column)), Path(image_folder) if image_folder else None)
            study_id = study_id or str(Path(image).with_suffix(""))
            texts: dict[str, list[str]] = defaultdict(list)
            for column, section in sections.items():
                texts[section].append(_text(row.get(column)))
            text = {section: "\n".join(filter(None, parts)) for section, parts in texts.items()}
            if needs_text and not any(text.values()):
                raise EntryError("empty text", f"nothing in {', '.join(sections)}")
            patient_id = _text(row.get(patient_column)) if patient_column else study_id
            if not patient_id:
                raise EntryError("no patient", f"column {patient_column!r} is empty")
            also = {name: _text(row.get(name)) for name in picked}
            view = also.pop("view", "").upper() or None
            date = _text(row.get(date_column)) if date_column else ""
            study = Study(
                study_id=study_id,
                patient_id=patient_id,
                split=SPLIT_NAMES[_text(row[split_column]).lower()] if split_column else None,
                images=(StudyImage(image, view),),
                labels=_labels(row, picked_labels),
                study_date=parse_date(date) if date else None,
                **{name: value for name, value in {**also, **text}.items() if value},
            )
        except EntryError as error:
            rejected.append(Rejected(file, line, study_id, error.reason, error.detail))
        else:
            entries.append((file, line, study))
    if not entries:
        first = f"; the first: {rejected[0]}" if rejected else ""
        raise ValueError(f"{path}: none of {len(rejected)} rows can be used{first}")
    if needs_text and not patient_column:
        warnings.warn(
            f"{path} has no patient column, so the split is by study and one patient may be in two splits: leakage "
            "cannot be excluded. Name the column that tells patients apart with --patient_column.",
            stacklevel=2,
        )
    corpus = _merge(entries, rejected)
    corpus.image_folder = Path(cache_folder) if cache_folder and Path(cache_folder).is_dir() else None
    return corpus


def _rows(
    path: str,
    image_column: str,
    image_folder: str | Path | None,
    cache_folder: str | Path | None,
    rejected: list[Rejected],
) -> Iterator[_Entry]:
    """The rows of whatever `path` is; the splits of a data set that has several appear as a column `split`."""
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    if suffix in _DELIMITERS:
        for line, row in read_csv(path, [image_column], rejected, _DELIMITERS[suffix]):
            yield path, line, row
    elif suffix == ".jsonl":
        yield from _read_jsonl_rows(path, rejected)
    elif suffix in (".json", ".txt", ".xlsx", ".parquet") and (suffix != ".parquet" or not Path(path).is_file()):
        wrong = "no such file" if not Path(path).is_file() else "not a table this reads"
        raise ValueError(f"{path}: {wrong}; give a .csv, .tsv, .jsonl or .parquet file, a folder, or a Hub id")
    else:
        yield from hub_rows(path, image_column, image_folder, cache_folder)


def _read_jsonl_rows(path: str, rejected: list[Rejected]) -> Iterator[_Entry]:
    with open_text(path) as handle:
        for line, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                rejected.append(Rejected(path, line, None, "not JSON", f"column {error.colno}: {error.msg}"))
                continue
            if isinstance(row, dict):
                yield path, line, row
            else:
                rejected.append(
                    Rejected(path, line, None, "not JSON", f"an object is wanted, not {type(row).__name__}")
                )


def _text(value: object) -> str:
    """A cell as text; None and NaN are empty."""
    return "" if value is None or value != value else str(value).strip()


def _sections(path: str, columns: Sequence[str], text_columns: str | Sequence[str] | None) -> dict[str, str]:
    """Text column -> the section of `Study` it fills."""
    if text_columns is None:
        text_columns = [name for name in SECTIONS[:3] if name in columns]
    elif isinstance(text_columns, str):
        text_columns = [name.strip() for name in text_columns.split(",") if name.strip()]
    if not text_columns:
        raise ValueError(
            f"{path}: no text column; name one with --text_columns (columns: {', '.join(columns) or 'none'})"
        )
    hides_report = any(name.lower() in ("findings", "impression") for name in text_columns)
    free = "findings" if hides_report else "report"
    return {name: name.lower() if name.lower() in SECTIONS else free for name in text_columns}


def _usable_split_column(rows: Sequence[_Entry], named: str | None, columns: Sequence[str]) -> str | None:
    """The named split column, checked; or `split` if it is there and says train, validate, test and nothing else."""
    column = named or ("split" if "split" in columns else None)
    if column is None:
        return None
    values = Counter(_text(row.get(column)).lower() for _, _, row in rows)
    strange = sorted(set(values) - set(SPLIT_NAMES))
    if named and strange:
        file, line, row = next(r for r in rows if _text(r[2].get(column)).lower() not in SPLIT_NAMES)
        raise ValueError(
            f"{file}:{line}: column {column!r} says {row.get(column)!r}; a split is one of {', '.join(SPLIT_NAMES)}"
        )
    if named or (not strange and any(SPLIT_NAMES[value] == "train" for value in values)):
        return column
    found = ", ".join(value or "(empty)" for value in sorted(values))
    logger.warning(
        "%s: column 'split' is not used, it says %s where train, validate and test are meant; the split is by patient",
        rows[0][0],
        found if len(found) < 200 else found[:200] + "...",
    )
    return None


def _labels(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, int | None]:
    """The states in `labels` and in the columns named as findings, those not mentioned left out of the former."""
    labels: dict[str, int | None] = {name: parse_state(name, row.get(name)) for name in columns if name != "labels"}
    value = row.get("labels") if "labels" in columns else None
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise EntryError("impossible label", f"labels {value!r} is not JSON: {error.msg}") from error
    if isinstance(value, Mapping):
        return labels | {name: parse_state(name, state) for name, state in value.items()}
    names = re.split(r"[,;|]", value) if isinstance(value, str) else value or ()
    return labels | {name.strip(): 1 for name in names if name.strip()}


def _merge(entries: Sequence[tuple[str, int, Study]], rejected: list[Rejected]) -> Corpus:
    """One study for the rows that differ in nothing but the image; every study an id of its own."""
    merged: dict[str, tuple[str, int, Study]] = {}
    for file, line, study in entries:
        key = json.dumps(replace(study, images=()).to_dict(), sort_keys=True)
        first_file, first_line, first = merged.get(key, (file, line, replace(study, images=())))
        if study.images[0] in first.images:
            rejected.append(Rejected(file, line, study.study_id, "duplicate row", study.images[0].path))
        else:
            merged[key] = first_file, first_line, replace(first, images=first.images + study.images)
    patients: dict[str, set[str]] = defaultdict(set)
    for _, _, study in merged.values():
        patients[study.study_id].add(study.patient_id)
    corpus = Corpus(rejected=rejected)
    for file, line, study in merged.values():
        # "1" of patient A and "1" of patient B are two studies; so are two texts of one study.
        name = study.study_id if len(patients[study.study_id]) == 1 else f"{study.patient_id}-{study.study_id}"
        names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        free = next(candidate for candidate in names if candidate not in corpus.places)
        corpus.add(replace(study, study_id=free), file, line)
    return corpus
