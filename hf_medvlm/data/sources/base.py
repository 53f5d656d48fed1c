"""What the readers of all corpora share: rejected entries, CSV rows with their lines, dates, links to prior studies.

Knows no corpus. A broken *file* (truncated, wrong header, no access) is a `ValueError`; a broken *entry* in a good file
becomes a `Rejected` with file and line, and the reader goes on.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import IO, TypeVar

from hf_medvlm.data.study import Study, check_relative_path

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
    `linked` says that the reader has named all priors there are.
    """

    studies: list[Study] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    places: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    linked: bool = False

    def add(self, study: Study, file: str, line: int | None) -> None:
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
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def require_columns(path: str | Path, found: Sequence[str], required: Iterable[str]) -> None:
    """Raise `ValueError` for the first required column that is not there, naming its neighbour and all there are."""
    for name in required:
        if name not in found:
            raise ValueError(
                f"{path}: no column {name!r}{nearest(name, found)} (columns: {', '.join(found) or 'none'})"
            )


def list_folder(folder: str | Path) -> list[str]:
    """The names in a folder, sorted; `ValueError` that names a folder which is not there or may not be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read: {error.strerror}") from error


@contextmanager
def open_text(path: str | Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, gzipped where its name ends in `.gz`.

    Raises:
        ValueError: the file is missing, may not be read, or is a folder; the message names it.
    """
    try:
        raw = gzip.open(path) if str(path).endswith(".gz") else open(path, "rb", buffering=0)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    with raw, io.TextIOWrapper(io.BufferedReader(raw, 1 << 20), encoding="utf-8-sig", newline="") as handle:
        yield handle


def read_csv(
    path: str | Path, required: Iterable[str], rejected: list[Rejected], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file with a header; rows of another width than the header go to `rejected`.

    Raises:
        ValueError: with file and line: no header, a required column missing, a truncated gzip, bad quotes, not UTF-8.
    """
    return _csv_rows(
        path, required, rejected, delimiter, lambda header: lambda row: dict(zip(header, row, strict=True))
    )


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
) -> Iterator[tuple[int, Cells]]:
    """Each row's first line and what `shape`, given the header, makes of the row."""
    line = 1
    try:
        with open_text(path) as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            header = next(reader, [])
            require_columns(f"{path}:1", header, required)
            made_of, width = shape(header), len(header)
            line = reader.line_num + 1
            for row in reader:
                if len(row) == width:
                    yield line, made_of(row)
                elif row:
                    detail = f"{len(row)} fields, the header has {width}"
                    rejected.append(Rejected(str(path), line, None, "wrong number of fields", detail))
                line = reader.line_num + 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{line}: the gzip is broken off or damaged ({error}); download it again") from error
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{line}: not UTF-8 at or after this line: {error.reason}") from error


_DAY = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)")
_CLOCK = re.compile(r"(\d\d):?(\d\d):?(\d\d)?(\.\d{1,6})?\d*(?:Z|[+-]\d\d:?\d\d)?")


def parse_date(text: str, time: str = "") -> str:
    """ISO 8601 of a date (`yyyymmdd`, `yyyy-mm-dd`, with or without a time behind a space or a T).

    Args:
        time: a DICOM time beside it, `hhmmss.ffffff`, whose leading zeros may be lost ("1014.5" is 00:10:14.5).

    Raises:
        EntryError: no such day or hour.
    """
    day, _, clock = text.strip().replace("T", " ").partition(" ")
    if time:
        whole, dot, fraction = time.strip().partition(".")
        clock = whole.zfill(6) + dot + fraction
    try:
        return f"{_parse_day(day)}T{_parse_clock(clock)}" if clock else _parse_day(day)
    except ValueError as error:
        shown = " ".join(filter(None, (text, time)))
        raise EntryError("impossible date", f"{shown!r}: {error}; use yyyymmdd or yyyy-mm-dd, hh:mm:ss") from error


@lru_cache(maxsize=100_000)
def _parse_day(text: str) -> str:
    match = _DAY.fullmatch(text)
    if not match:
        raise ValueError("no date")
    return date(int(match[1]), int(match[3]), int(match[4])).isoformat()


def _parse_clock(text: str) -> str:
    match = _CLOCK.fullmatch(text)
    if not match:
        raise ValueError("no time")
    hour, minute, second, fraction = match.groups(default="")
    if not (hour < "24" and minute < "60" and second < "61"):  # the digits are two, so text compares as numbers do
        raise ValueError("no such hour, minute or second")
    return f"{hour}:{minute}:{second or '00'}{fraction}"


def parse_state(name: str, value: object) -> int | None:
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
            "impossible label", f"{name} is {value!r}; use 1 present, 0 absent, -1 uncertain, empty not mentioned"
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
    found = [study.prior_study_id if study.prior_study_id in ids else priors.get(study.study_id) for study in studies]
    return [
        study if prior == study.prior_study_id else replace(study, prior_study_id=prior)
        for study, prior in zip(studies, found, strict=True)
    ]


def find_priors(dated: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Study id -> the latest study of the same patient that is strictly earlier.

    Of several at that earlier moment the greatest id is taken, so that the order of the rows does not matter. A date
    without a time orders before the same day with one.

    Args:
        dated: (patient id, study id, ISO 8601 date or date and time).
    """
    by_patient: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient, study_id, moment in dated:
        by_patient[patient].append((moment, study_id))
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
