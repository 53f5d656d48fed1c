"""What the readers of all corpora share: rejected entries, CSV rows with their lines, dates, links to prior studies.

Knows no corpus. A broken *file* (truncated, wrong header, no access) is a `ValueError`; a broken *entry* in a good file
becomes a `Rejected` with file and line, and the reader goes on.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from hf_medvlm.data.fields import iso_date
from hf_medvlm.data.files import GZIP_ERRORS, broken_gzip, open_text
from hf_medvlm.data.study import Study, check_relative_path
from hf_medvlm.errors import clipped

Cells = TypeVar("Cells")


@dataclass(frozen=True)
class Rejected:
    """An entry that did not make it into the master file: where it stands and why.

    `reason` is short and the same for all of its kind, so that it can be counted; `detail` says what was found.
    `line` counts from 1 and is the first line of an entry that spans several; None where a file has no lines.
    """

    file: str
    line: int | None
    study_id: str | None
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        study = f" study {self.study_id!r}" if self.study_id else ""
        return f"{where}:{study} {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Corpus:
    """What a reader found: studies, not yet given a split of ours, and what it left out.

    `places` says for each study id in which file, on which line, it stands, for what is found wrong with it later.
    `linked` says that the reader has named all priors there are. `image_folder` is set where image paths are relative
    to another folder than the one that was given, since images lay inside the data set and were exported. `notes` say
    what was guessed; `patients_known` is False where nothing tells patients apart. `given_splits` are those that the
    corpus names itself where it leaves others open: none of the open studies is dealt into them.
    """

    studies: list[Study] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    places: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    linked: bool = False
    image_folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    patients_known: bool = True
    given_splits: frozenset[str] = frozenset()

    def add(self, study: Study, file: str, line: int | None) -> None:
        """Take a study; one whose id, or whose patient's, is blank is left out and named."""
        blank = [name for name in ("study_id", "patient_id") if not getattr(study, name).strip()]
        if blank:
            self.rejected.append(Rejected(file, line, study.study_id.strip() or None, f"no {' and no '.join(blank)}"))
            return
        self.studies.append(study)
        self.places[study.study_id] = (file, line)

    def reject(self, study: Study, reason: str, detail: str = "") -> None:
        """Count a study, or a part of it, as left out; the caller takes it off `studies`."""
        self.rejected.append(Rejected(*self.places[study.study_id], study.study_id, reason, detail))


class EntryError(ValueError):
    """An entry that cannot be taken: `reason` and `detail` of the `Rejected` it becomes."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail = reason, detail


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where one of `names` resembles `name` (case aside), else nothing."""
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def require_columns(path: str | Path, columns: Sequence[str], required: Iterable[str]) -> None:
    """Raise `ValueError` for the first required column that is not there, naming its neighbour and all there are."""
    for name in required:
        if name not in columns:
            raise ValueError(
                f"{path}: no column {name!r:.100}{nearest(name, columns)} (columns: "
                f"{clipped(', '.join(columns)) or 'none'})"
            )


def list_folder(folder: str | Path) -> list[str]:
    """The names in a folder, sorted; `ValueError` that names a folder which is not there or may not be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read: {error.strerror}") from error


def find_table(root: Path, folders: Iterable[str], name: str) -> Path | None:
    """The first of these folders' files of this name, also gzipped; None where there is none."""
    paths = (root / folder / (name + packed) for folder in folders for packed in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def files_by_stem(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """File name without ending -> path below the root, of the files of these folders; the first folder wins."""
    matches: dict[str, str] = {}
    for folder in folders:
        for name in list_folder(root / folder) if (root / folder).is_dir() else ():
            matches.setdefault(Path(name).stem, (Path(folder) / name).as_posix())
    return matches


def read_csv(
    path: str | Path,
    required: Iterable[str],
    rejected: list[Rejected],
    delimiter: str = ",",
    encoding: str | None = None,
    skip: int = 0,
    spaces: bool = True,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file with a header; rows of another width than the header go to `rejected`.

    Args:
        encoding: by default UTF-8, or what a byte order mark says.
        skip: lines before the header.
        spaces: those before a cell belong to it; False where a quotation mark may stand behind them.

    Raises:
        ValueError: with file and line: no header, a required column missing or a column that stands twice, a truncated
            gzip, bad quotes, bytes of another encoding.
    """

    def as_dict(header: list[str]) -> Callable[[list[str]], dict[str, str]]:
        return lambda row: dict(zip(header, row, strict=True))

    return _csv_rows(path, required, rejected, delimiter, as_dict, encoding, skip, spaces)


def read_columns(
    path: str | Path, columns: Sequence[str], rejected: list[Rejected]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line, the cells of `columns`) of a CSV file; twice as fast as `read_csv`, and raises the same."""
    return _csv_rows(path, columns, rejected, ",", lambda header: itemgetter(*map(header.index, columns)))


def _csv_rows(
    path: str | Path,
    required: Iterable[str],
    rejected: list[Rejected],
    delimiter: str,
    shape: Callable[[list[str]], Callable[[list[str]], Cells]],
    encoding: str | None = None,
    skip: int = 0,
    spaces: bool = True,
) -> Iterator[tuple[int, Cells]]:
    """Each row's first line and what `shape`, given the header, makes of the row."""
    line = 1 + skip
    with open_text(path, encoding) as handle:
        for _ in range(skip):
            handle.readline()
        try:
            reader = csv.reader(handle, delimiter=delimiter, strict=True, skipinitialspace=not spaces)
            header = [name.strip() for name in next(reader, [])]
            require_columns(f"{path}:{line}", header, required)
            refuse_repeated(path, header)
            made_of, width = shape(header), len(header)
            line = reader.line_num + 1 + skip
            for row in reader:
                if len(row) == width:
                    yield line, made_of(row)
                elif len(row) > width and not any(row[width:]):  # separators behind the last column
                    yield line, made_of(row[:width])
                elif row:
                    detail = f"{len(row)} fields, the header has {width}"
                    rejected.append(Rejected(str(path), line, None, "wrong number of fields", detail))
                line = reader.line_num + 1 + skip
        except GZIP_ERRORS as error:
            raise ValueError(f"{path}:{line}: {broken_gzip(error)}") from error
        except csv.Error as error:
            hint = "; is a quotation mark open, or the separator another?"
            raise ValueError(f"{path}:{line}: not CSV: {error}{hint}") from error


def refuse_repeated(path: str | Path, header: Sequence[str]) -> None:
    """Raise `ValueError` where two columns have one name: which of them is meant nobody can tell."""
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        places = [str(place) for place, name in enumerate(header, start=1) if name == twice[0]]
        raise ValueError(
            f"{path}:1: column {twice[0]!r:.100} stands {len(places)} times (columns {', '.join(places)}); "
            f"rename or remove "
            "all but one"
        )


def parse_date(text: str, time: str = "") -> str:
    """`fields.iso_date` for the readers of corpora.

    Raises:
        EntryError: no such day or hour.
    """
    try:
        return iso_date(text, time)
    except ValueError as error:
        raise EntryError("impossible date", str(error)) from error


def parse_state(name: str, value: Any) -> int | None:
    """A CheXpert state from a cell: 1, 0, -1 (also "1.0", 1.0) or None where it is empty.

    Raises:
        EntryError: any other value; the message names the finding.
    """
    if value is None or value == "" or value != value:  # the last is NaN
        return None
    try:
        state = float(value)
    except (TypeError, ValueError):
        state = math.inf
    if state not in (-1, 0, 1):
        raise EntryError(
            "impossible label", f"{name} is {value!r:.100}; use 1 present, 0 absent, -1 uncertain, empty not mentioned"
        )
    return int(state)


def parse_path(path: str, folder: Path | None = None) -> str:
    """An image path relative to `folder`, with forward slashes; an absolute one inside `folder` is made relative.

    Raises:
        EntryError: the path is empty or leaves the folder.
    """
    if not path:
        raise EntryError("no image", "the image path is empty")
    if folder and Path(path).is_absolute() and Path(path).is_relative_to(folder.absolute()):
        path = Path(path).relative_to(folder.absolute()).as_posix()
    try:
        return check_relative_path(path)
    except ValueError as error:
        raise EntryError("path leaves the image folder", str(error)) from error


def link_priors(studies: Sequence[Study], linked: bool = False) -> list[Study]:
    """Link each dated study to its prior (see `find_priors`); a prior that is already named and there is kept.

    Args:
        linked: all priors have been named; there is work only where one of them has been left out since.
    """
    ids = {study.study_id for study in studies}
    if linked and all(study.prior_study_id is None or study.prior_study_id in ids for study in studies):
        return list(studies)
    priors = find_priors((study.patient_id, study.study_id, study.study_date) for study in studies if study.study_date)
    links = [study.prior_study_id if study.prior_study_id in ids else priors.get(study.study_id) for study in studies]
    return [
        study if prior == study.prior_study_id else replace(study, prior_study_id=prior)
        for study, prior in zip(studies, links, strict=True)
    ]


def link_in_order(numbered: Mapping[str, Iterable[tuple[float, str]]]) -> dict[str, str]:
    """Study id -> the study before it, for corpora that number a patient's studies in time instead of dating them.

    Args:
        numbered: patient -> (number, study id) of each study; of equal numbers neither is the other's prior.
    """
    dated = (
        (patient, study_id, f"{number:020.3f}")
        for patient, studies in numbered.items()
        for number, study_id in studies
        if number >= 0
    )
    return find_priors(dated)


def find_priors(dated: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Study id -> the latest study of the same patient that is strictly earlier.

    Of several at that earlier moment the greatest id is taken, so that the order of the rows does not matter. A date
    without a time orders before the same day with one.

    Args:
        dated: (patient id, study id, ISO 8601 date or date and time).
    """
    by_patient: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient, study_id, moment in dated:
        by_patient[patient].append((moment.rstrip("0").rstrip(".") if "." in moment else moment, study_id))
    priors: dict[str, str] = {}
    for studies in by_patient.values():
        if len(studies) > 1:
            studies.sort()
            for place, (moment, study_id) in enumerate(studies):
                earlier = place - 1
                while earlier >= 0 and studies[earlier][0] == moment:
                    earlier -= 1
                if earlier >= 0:
                    priors[study_id] = studies[earlier][1]
    return priors
