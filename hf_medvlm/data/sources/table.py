"""Any table with an image column and one or more text columns -> studies.

CSV and its kin, JSON, Excel, Parquet, a folder, a Hub data set. Knows no corpus; those with a layout of their own have
their own files beside this one. What somebody else's table is like is found out in `rows.py` (kinds and separators),
`columns.py` (names), `cells.py` (words, lists) and `image_paths.py`; whatever is guessed is said.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_medvlm.data.fields import SPLIT_NAMES, id_text, patient_of_path
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, parse_date
from hf_medvlm.data.sources.cells import Missing, as_list, image_cells, label_states, pair_views, report_text, text_of
from hf_medvlm.data.sources.columns import Columns, recognise
from hf_medvlm.data.sources.hub import EmbeddedImages
from hf_medvlm.data.sources.image_paths import ImagePaths
from hf_medvlm.data.sources.rows import Entry, table_rows
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.errors import clipped

logger = logging.getLogger(__name__)
_ROUNDED = re.compile(r"\d[.,]\d+[eE]\+\d+")  # what Excel writes in place of a long number


def load_table(
    path: str | Path,
    image_column: str | None = None,
    text_columns: str | Sequence[str] | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    date_column: str | None = None,
    image_folder: str | Path | None = None,
    cache_folder: str | Path | None = None,
    encoding: str | None = None,
    held_out: bool = False,
    needs_text: bool = True,
) -> Corpus:
    """Read a table into studies, and the rows that could not be taken, with file and line.

    No prior is linked yet and no split is drawn.

    Rows that agree in patient, `study_id`, text and all else but the image are one study with several images, and so
    are rows of a `study_id` whose text stands in one of them; those that disagree are studies of their own, which is
    said. A text column named findings, impression, report, indication
    or comparison fills that section. One with another name is free text: it fills `report`, or, beside a findings or
    impression column (which hide the report from `Study.text`), adds to `findings`.

    Columns that are not named are recognised by common names (`columns.py`), and what was recognised is said. So are
    patient, study, split, date, view, indication, comparison, labels, prior_study_id, source, licence, and the columns
    of CheXpert's 14 findings. `labels` is a JSON object of states, or the names of what is present: a list, or divided
    by comma, semicolon or bar.

    Args:
        path: a .csv, .tsv, .txt, .jsonl or .json file (also .gz), an .xlsx or .parquet file, a folder with a table or
            that `datasets` reads, or a Hub id.
        text_columns: names, or one text with commas; without it those of findings, impression, report that are there.
        patient_column: without it, and without a column that is known to hold patients, the split is by study, with a
            warning.
        split_column: without it a column `split` (or the data set's own splits) is taken if it holds nothing but names
            of train, validate and test, train among them; else the split is by patient.
        date_column: orders a patient's studies and links each to its prior.
        image_column: a column, or several divided by commas where each view has its own.
        image_folder: paths are relative to it; absolute ones inside it are made so.
        cache_folder: where images that lie inside a data set are exported; their paths are relative to it.
        encoding: of a text file; by default UTF-8, or what its byte order mark says.
        held_out: nothing is trained, so that a split column need not name a train.
        needs_text: a row without a text is left out, and a table without a text column is refused; False where a
            trained model is to write the text.

    Raises:
        ValueError: with file and line where there is one: no such file, unknown column (with its neighbour), a broken
            file, a named split column with other words in it, no text in any row, no good row at all.
    """
    path = str(path)
    rejected: list[Rejected] = []
    notes: list[str] = []
    rows = list(table_rows(path, encoding, rejected, notes))
    named = (image_column, text_columns, patient_column, split_column, date_column)
    return studies_of_rows(path, rows, rejected, notes, *named, image_folder, cache_folder, held_out, needs_text)


def studies_of_rows(
    path: str,
    rows: Sequence[Entry],
    rejected: list[Rejected],
    notes: list[str],
    image_column: str | None = None,
    text_columns: str | Sequence[str] | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    date_column: str | None = None,
    image_folder: str | Path | None = None,
    cache_folder: str | Path | None = None,
    held_out: bool = False,
    needs_text: bool = True,
) -> Corpus:
    """The studies of rows that have been read; `load_table` says what the arguments are, and what is raised.

    Args:
        rejected: rows that were broken; those that cannot be taken are added.
        notes: what was guessed about the rows.
    """
    names = list(dict.fromkeys(name for _, _, row in rows for name in row))
    if not rows:
        hint = "; a text that holds the separator must stand in quotation marks"
        first = f"; the first that is broken: {rejected[0]}{hint}" if rejected else ""
        raise ValueError(f"{path}: no rows below the header{first}")
    columns = recognise(path, names, image_column, text_columns, patient_column, split_column, date_column, needs_text)
    columns.split = _usable_split_column(rows, split_column, columns.split, held_out)
    columns.date, columns.time = _usable_dates(rows, date_column, columns, notes)
    embedded = EmbeddedImages(path, image_folder, cache_folder)
    reader = _Reader(columns, ImagePaths(image_folder), embedded, needs_text)
    entries = []
    for file, line, row in _with_texts_of_studies(rows, columns, notes) if needs_text else rows:
        study_id = None
        try:
            study_id = _id(row, columns.study_id)
            entries.append((file, line, reader.study(row, study_id)))
        except EntryError as error:
            rejected.append(Rejected(file, line, study_id, error.reason, error.detail))
    if not entries:
        first = f"; the first: {rejected[0]}" if rejected else ""
        raise ValueError(f"{path}: none of {len(rejected)} rows can be used{first}")
    known = columns.patient is not None or not reader.unknown_patients
    if needs_text and not known:
        warnings.warn(
            f"{path} has no patient column, so the split is by study and one patient may be in two splits: leakage "
            "cannot be excluded. Name the column that tells patients apart with --patient_column.",
            stacklevel=2,
        )
    corpus = _merge(entries, rejected, notes)
    corpus.image_folder = Path(cache_folder) if cache_folder and reader.embedded.exported else None
    corpus.patients_known = known
    if columns.patient is None and known:
        notes.append("no patient column; the image paths tell patients apart, as MIMIC-CXR's and CheXpert's do")
    corpus.notes = notes + columns.notes + reader.paths.notes() + reader.missing.note()
    for note in corpus.notes:
        logger.info("%s: %s", Path(path).name, note)
    return corpus


class _Reader:
    """One row -> one study."""

    def __init__(self, columns: Columns, paths: ImagePaths, embedded: EmbeddedImages, needs_text: bool) -> None:
        self.columns, self.paths, self.embedded, self.needs_text = columns, paths, embedded, needs_text
        self.missing = Missing()
        self.unknown_patients = 0

    def study(self, row: Mapping[str, Any], study_id: str | None) -> Study:
        """
        Raises:
            EntryError: anything in the row that a study cannot have.
        """
        columns = self.columns
        images = self._images(row, filter(None, (study_id, _id(row, columns.patient))))
        study_id = study_id or str(Path(images[0].path).with_suffix(""))
        texts: dict[str, list[str]] = defaultdict(list)
        for column, section in columns.texts.items():
            texts[section].append(report_text(row.get(column), column, self.missing))
        text = {section: "\n".join(filter(None, parts)) for section, parts in texts.items()}
        if self.needs_text and not any(text.values()):
            raise EntryError("empty text", f"nothing in {clipped(', '.join(columns.texts))}")
        named = patient_of_path(images[0].path) if columns.patient is None else None
        self.unknown_patients += columns.patient is None and named is None
        patient_id = _id(row, columns.patient) if columns.patient else named or study_id
        if not patient_id:
            raise EntryError("no patient", f"column {columns.patient!r:.100} is empty")
        also: dict[str, Any] = {name: self.missing.text(row.get(column)) for name, column in columns.picked.items()}
        prior = _id(row, columns.picked.get("prior_study_id"))
        also.pop("prior_study_id", None)
        states = {finding: row.get(column) for column, finding in columns.labels.items()}
        return Study(
            study_id=study_id,
            patient_id=patient_id,
            split=SPLIT_NAMES[text_of(row[columns.split]).lower()] if columns.split else None,
            images=images,
            labels=label_states(row.get(columns.label_lists) if columns.label_lists else None, states),
            study_date=_moment(row, columns.date, columns.time),
            prior_study_id=prior or None,
            **{name: value for name, value in {**also, **text}.items() if value},
        )

    def _images(self, row: Mapping[str, Any], near: Iterable[str]) -> tuple[StudyImage, ...]:
        """The images of a row; of several files that a path fits, the one in a folder named by one of `near`."""
        images: list[tuple[str, str | None]] = []
        folders = tuple(near)
        for cell in self._image_cells(row):
            if isinstance(cell, Mapping) and cell.get("bytes") is None and isinstance(cell.get("path"), str):
                if not self.embedded.from_data_set(cell["path"]):
                    paths = self.paths.find(cell["path"], folders)
                    images += [(path, cell.get("view") or view) for path, view in paths]
                    continue
            if isinstance(cell, (Mapping, bytes)):
                images.append((self.embedded.find(cell), None))
            else:
                images += self.paths.find(cell, folders)
        views = as_list(row.get(self.columns.view)) if self.columns.view else [None]
        views_of = pair_views(views, len(images))
        return tuple(
            StudyImage(path, view or given_view) for (path, given_view), view in zip(images, views_of, strict=True)
        )

    def _image_cells(self, row: Mapping[str, Any]) -> list[Any]:
        first, *others = self.columns.images
        cells = image_cells(row.get(first), self.missing)
        for column in others:
            cells += image_cells(row.get(column), self.missing)
        return [cell for cell in cells if cell] or cells[:1] if others else cells


def _with_texts_of_studies(rows: Sequence[Entry], columns: Columns, notes: list[str]) -> Iterable[Entry]:
    """The rows; where the text of a study stands in one row of several, the others get what is empty in them."""
    if columns.study_id is None:
        return rows
    keys = [tuple(text_of(row.get(name)) for name in (columns.study_id, columns.patient) if name) for _, _, row in rows]
    blank = Missing()
    has_text = [any(blank.text(row.get(name)) for name in columns.texts) for _, _, row in rows]
    texts: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for key, (_, _, row), told in zip(keys, rows, has_text, strict=True):
        if told and key[0]:
            texts[key].append(row)
    filled, of_its_own, count = [], {*columns.images, columns.view}, 0
    for key, (file, line, row), told in zip(keys, rows, has_text, strict=True):
        if not told and len(texts[key]) == 1:
            empty = {name for name in row if name not in of_its_own and not blank.text(row[name])}
            row, count = {**row, **{name: texts[key][0].get(name) for name in empty}}, count + 1
        filled.append((file, line, row))
    if count:
        notes.append(f"{count} rows without a text are images of a study whose text stands in another row")
    return filled


def _id(row: Mapping[str, Any], column: str | None) -> str:
    """An id, which may be a number; words for "nothing" are none."""
    if column is None:
        return ""
    try:
        text = id_text(row.get(column), column)
    except ValueError as error:
        raise EntryError("impossible id", str(error)) from error
    if _ROUNDED.fullmatch(text):
        raise EntryError(
            "impossible id", f"{text!r:.100} in column {column!r:.100} has lost digits; format the column as text"
        )
    return "" if text.lower() in ("nan", "none", "null", "<na>", "n/a") else text


def _usable_split_column(rows: Sequence[Entry], named: str | None, column: str | None, held_out: bool) -> str | None:
    """The named split column, checked; or the recognised one if it says train, validate, test and nothing else."""
    if column is None:
        return None
    values = Counter(text_of(row.get(column)).lower() for _, _, row in rows)
    strange = sorted(set(values) - set(SPLIT_NAMES))
    if named and strange:
        file, line, row = next(r for r in rows if text_of(r[2].get(column)).lower() not in SPLIT_NAMES)
        raise ValueError(
            f"{file}:{line}: column {column!r:.100} says {row.get(column)!r:.100}; a split is one of "
            f"{', '.join(SPLIT_NAMES)}"
        )
    if named or (not strange and (held_out or any(SPLIT_NAMES[value] == "train" for value in values))):
        return column
    shown = ", ".join(value or "(empty)" for value in sorted(values))
    logger.warning(
        "%s: column %r is not used, it says %s where train, validate and test are meant; %s",
        rows[0][0],
        column,
        shown if len(shown) < 200 else shown[:200] + "...",
        "every row is scored" if held_out else "the split is by patient",
    )
    return None


def _moment(row: Mapping[str, Any], date: str | None, time: str | None) -> str | None:
    """The date of a row, with its time where there is one; dates that pandas made floats (20200131.0) are dates."""
    if date is None:
        return None
    try:
        day = id_text(row.get(date), date) if isinstance(row.get(date), (str, float)) else text_of(row.get(date))
    except ValueError as error:
        raise EntryError("impossible date", str(error)) from error
    clock = text_of(row.get(time)).replace(":", "") if time else ""
    return parse_date(day, id_text(clock, str(time))) if day else None


def _usable_dates(
    rows: Sequence[Entry], named: str | None, columns: Columns, notes: list[str]
) -> tuple[str | None, str | None]:
    """The columns of dates and times: the named date column, or one called `study_date`; recognised ones only if every
    date, and every time, in them can be read."""
    date, time = columns.date, columns.time
    if time and (problem := _unreadable(rows, date, time)) and not _unreadable(rows, date, None):
        notes.append(f"column {time!r} is not used for times: {problem}")
        time = None
    if date is None or named or date == "study_date":
        return date, time
    if problem := _unreadable(rows, date, None):
        notes.append(f"column {date!r} is not used for dates: {problem}")
        return None, None
    return date, time


def _unreadable(rows: Sequence[Entry], date: str | None, time: str | None) -> str | None:
    """The first row whose date, or time, cannot be read."""
    for _, line, row in rows:
        try:
            _moment(row, date, time)
        except EntryError as error:
            return f"line {line}: {error.detail}"
    return None


def _merge(entries: Sequence[tuple[str, int, Study]], rejected: list[Rejected], notes: list[str]) -> Corpus:
    """One study for the rows that differ in nothing but the image; every study an id of its own."""
    merged: dict[str, tuple[str, int, Study]] = {}
    for file, line, study in entries:
        key = json.dumps(replace(study, images=()).to_dict(), sort_keys=True)
        first_file, first_line, first = merged.get(key, (file, line, replace(study, images=())))
        more = tuple(image for image in dict.fromkeys(study.images) if image not in first.images)
        if not more:
            rejected.append(Rejected(file, line, study.study_id, "duplicate row", study.images[0].path))
        else:
            merged[key] = first_file, first_line, replace(first, images=first.images + more)
    patients: dict[str, set[str]] = defaultdict(set)
    for _, _, study in merged.values():
        patients[study.study_id].add(study.patient_id)
    corpus, several = Corpus(rejected=rejected), []
    for file, line, study in merged.values():
        # "1" of patient A and "1" of patient B are two studies; so are two texts of one study.
        name = study.study_id if len(patients[study.study_id]) == 1 else f"{study.patient_id}-{study.study_id}"
        names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        free = next(candidate for candidate in names if candidate not in corpus.places)
        several += [name] if free != name else []
        corpus.add(replace(study, study_id=free), file, line)
    if several:
        notes.append(
            f"{len(several)} texts stand beside an id that has another text already, as {several[0]!r} has; each is a "
            "study of its own. Where they are sections of one report, give each section a column"
        )
    return corpus
