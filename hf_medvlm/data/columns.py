"""A large master file as a sequence of studies: no Python object a study, but its columns, memory-mapped.

A study is read from its line when it is asked for. What must be known of all studies (splits, patients, leaks, texts,
licences, labels, priors) is answered by the columns (`column_index.py`), with the answers that the studies one by one
give.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_medvlm.data.column_index import Columns, open_columns
from hf_medvlm.data.column_parts import CONVERSATION, TEXT_BITS, is_plain, written
from hf_medvlm.data.fields import section_alternatives
from hf_medvlm.data.quality import without_images
from hf_medvlm.data.splits import deal, patient_fraction
from hf_medvlm.data.study import Study
from hf_medvlm.labels import SPLITS

ROWS_BELOW = 4 * 2**20
"""Bytes; of a smaller JSONL the studies are kept as objects."""
BLOCK = 65536
"""Studies that are looked at together, where a look makes Python objects."""


Change: TypeAlias = "Callable[[StudyTable, int, Study], Study]"


class StudyTable(Sequence[Study]):
    """The studies of a master file, or some of them, in its order. Slices are tables too; can be sent to workers.

    Args:
        path: of the JSONL or Parquet file.
        columns: of `open_columns`.
        rows: the numbers of the studies; by default all.
        splits: (studies of the file,) int8, places in `SPLITS`; by default those of the file.
        dropped: number of a study -> the numbers of its images that are left out.
        change: (table, number, study) -> what the table gives in its place; see `changed`.
    """

    def __init__(
        self,
        path: Path,
        columns: Columns,
        rows: np.ndarray | None = None,
        splits: np.ndarray | None = None,
        dropped: Mapping[int, Sequence[int]] | None = None,
        change: Change | None = None,
    ) -> None:
        self.path, self.columns, self.dropped, self.change = path, columns, dropped or {}, change
        self.rows = np.arange(len(columns), dtype=np.int32) if rows is None else rows
        self.all_splits = columns.numbers["split"] if splits is None else splits
        self._file: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: str | Path) -> StudyTable:
        """Raises `NotPlain` where `read_jsonl` must look at the file, `ValueError` of a Parquet file it cannot take."""
        return cls(Path(path), open_columns(Path(path)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"columns": None, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.columns = open_columns(self.path)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Study: ...
    @overload
    def __getitem__(self, index: slice) -> StudyTable: ...
    def __getitem__(self, index: int | slice) -> Study | StudyTable:
        if isinstance(index, slice):
            return self.at(self.rows[index])
        number = int(self.rows[index])
        study = self.numbered(number)
        return study if self.change is None else self.change(self, number, study)

    def numbered(self, number: int) -> Study:
        """The study of this number in the file, in its split and without the images that are left out; not changed."""
        study, split = self.whole(number), self._split_name(number)
        if split is not None and study.split != split:
            study = replace(study, split=split)
        return without_images(study, self.dropped[number]) if number in self.dropped else study

    def _split_name(self, number: int) -> str | None:
        split = int(self.all_splits[number])
        return SPLITS[split] if split >= 0 else None

    def prior(self, number: int) -> Study | None:
        """The study before one of the file, where it is among these."""
        prior = int(self.columns.numbers["prior"][number])
        return self.numbered(prior) if prior >= 0 and self.has_row(prior) else None

    def changed(self, change: Change) -> StudyTable:
        """These studies as `change` gives them; patients, splits, images and counts are those of the file."""
        return StudyTable(self.path, self.columns, self.rows, self.all_splits, self.dropped, change)

    def whole(self, number: int) -> Study:
        """A study of the file with all its images."""
        return Study.from_dict(json.loads(self._line(number)))

    def __iter__(self) -> Iterator[Study]:
        return (self[index] for index in range(len(self.rows)))

    def records(self) -> Iterator[dict[str, Any]]:
        """`Study.to_dict` of each study, keys in any order; several times as fast as by way of the studies."""
        for index, number in enumerate(self.rows.tolist()):
            if self.change is None and number not in self.dropped:
                record = json.loads(self._line(number))
                if is_plain(record):
                    yield written(record, self._split_name(number))
                    continue
            yield self[index].to_dict()

    def _line(self, number: int) -> bytes:
        if "line" in self.columns.texts.column_names:
            return self.columns.texts["line"][number].as_py()
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), os.open(self.path, os.O_RDONLY))
        begin, length = (int(self.columns.numbers[name][number]) for name in ("offset", "length"))
        return os.pread(self._file[1], length, begin)

    def __del__(self) -> None:
        file: tuple[int, int] | None = getattr(self, "_file", None)
        if file is not None and os is not None and file[0] == os.getpid():  # Python may be about to end
            os.close(file[1])

    def at(self, rows: np.ndarray) -> StudyTable:
        """The studies with these numbers."""
        return StudyTable(self.path, self.columns, rows, self.all_splits, self.dropped, self.change)

    def has_row(self, number: int) -> bool:
        """Whether the study of this number is among these, which stand in the order of the file."""
        place = int(np.searchsorted(self.rows, number))
        return place < len(self.rows) and int(self.rows[place]) == number

    @property
    def is_all(self) -> bool:
        """Whether these are all studies of the file."""
        return len(self.rows) == len(self.columns)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers of these studies (see `Columns`)."""
        values = self.columns.numbers[name]
        return values if self.is_all else values[self.rows]

    @property
    def split(self) -> np.ndarray:
        """(n,) int8, places in `SPLITS`, -1 where there is none."""
        return self.all_splits[self.rows]

    def patient_ids(self, rows: np.ndarray) -> Iterator[str]:
        """The patients' ids of studies of these numbers."""
        return _values(self.columns.texts["patient_id"], rows)

    # -- what is asked of all studies ---------------------------------------------------------------------------------

    def in_split(self, name: str, limit: int | None = None) -> StudyTable:
        """The studies of a split, at most so many."""
        return self.at(self.rows[self.split == SPLITS.index(name)][:limit])

    def with_splits(self, held_out: bool = False) -> StudyTable:
        """`splits.assign_splits`; with `held_out`, `test` for each study that has no split."""
        given = self.split >= 0
        if given.all():
            return self
        splits = self.all_splits.copy()
        if held_out:
            splits[self.rows[~given]] = SPLITS.index("test")
            return StudyTable(self.path, self.columns, self.rows, splits, self.dropped)
        patients = self.column("patient")
        of_patient, first = np.full(self._patient_count(), -1, np.int8), np.full(self._patient_count(), -1, np.int32)
        of_patient[patients[given]] = self.split[given]  # of several the last counts, as in `assign_splits`
        first[patients[::-1]] = self.rows[::-1]
        unknown = np.flatnonzero((first >= 0) & (of_patient < 0))
        fractions = np.fromiter(map(patient_fraction, self.patient_ids(first[unknown])), float, len(unknown))
        names = deal(np.sort(fractions), bool(given.any()))
        codes = np.concatenate([np.full(count, SPLITS.index(name), np.int8) for name, count in names])
        of_patient[unknown[np.argsort(fractions)]] = codes
        splits[self.rows[~given]] = of_patient[patients[~given]]
        return StudyTable(self.path, self.columns, self.rows, splits, self.dropped)

    def _patient_count(self) -> int:
        return int(self.columns.numbers["patient"].max(initial=-1)) + 1

    def leaks(self) -> dict[str, list[str]]:
        """`quality.find_leakage`."""
        patients, split = self.column("patient"), self.split
        seen = np.zeros(self._patient_count(), np.uint8)
        for number in range(len(SPLITS)):
            seen[patients[split == number]] |= 1 << number
        several = (seen & (seen - 1)) > 0
        if not several.any():
            return {}
        guilty = np.flatnonzero(several[patients] & (split >= 0))
        names: dict[str, set[str]] = {}
        for patient, place in zip(self.patient_ids(self.rows[guilty]), split[guilty].tolist(), strict=True):
            names.setdefault(patient, set()).add(SPLITS[place])
        return {name: sorted(splits) for name, splits in names.items()}

    def images(self) -> Iterator[np.ndarray]:
        """The numbers of the images' paths, dropped ones among them, block by block."""
        start, image = self.columns.numbers["image_start"], self.columns.numbers["image"]
        if self.is_all:
            yield image
            return
        for begin in range(0, len(self.rows), BLOCK):
            rows = self.rows[begin : begin + BLOCK]
            counts = start[rows + 1] - start[rows]
            shift = start[rows] - np.cumsum(counts) + counts
            yield image[np.repeat(shift, counts) + np.arange(counts.sum())]

    def image_paths(self) -> pa.ChunkedArray:
        """The paths of all images, dropped ones among them."""
        column = self.columns.texts["images"]
        lists = column.chunks if self.is_all else [part for part, _ in _chunks(column, self.rows)]
        return pa.chunked_array([part.flatten() for part in lists], pa.string())

    def texts(self, name: str) -> Counter[str]:
        """`source`, `licence`, `labels` or `progression` (JSON, "" for none) -> how many studies have it."""
        known = self.columns.coded[name]
        counts = np.bincount(self.column(name), minlength=len(known)).tolist()
        return Counter({text: count for text, count in zip(known, counts, strict=True) if count})

    def without_broken(self, broken: Mapping[str, str]) -> tuple[StudyTable, list[tuple[int, list[int]]]]:
        """The table without images in `broken`, and without studies that have none left; (number, images) of those that
        lost some."""
        wanted = pa.array(list(broken), pa.string())
        lost: list[tuple[int, list[int]]] = []
        for lists, rows in _chunks(self.columns.texts["images"], self.rows):
            bad = np.flatnonzero(pc.is_in(lists.flatten(), value_set=wanted))
            ends = np.cumsum(lists.value_lengths().to_numpy())
            of_study: dict[int, list[int]] = {}
            for place in bad.tolist():
                owner = int(np.searchsorted(ends, place, side="right"))
                of_study.setdefault(owner, []).append(place - (int(ends[owner - 1]) if owner else 0))
            lost += [(int(rows[owner]), places) for owner, places in of_study.items()]
        empty = {number for number, places in lost if len(places) == self._images(number)}
        kept = self.rows[~np.isin(self.rows, list(empty))] if empty else self.rows
        dropped = {**self.dropped, **{number: places for number, places in lost if number not in empty}}
        return StudyTable(self.path, self.columns, kept, self.all_splits, dropped), lost

    def _images(self, number: int) -> int:
        begin, end = self.columns.numbers["image_start"][number : number + 2].tolist()
        return end - begin

    def text_sources(self, sections: str) -> np.ndarray:
        """(n,) int8: the number of the first alternative of `sections` that a study has any text of; -1 where of
        none."""
        has, source = self.column("has"), np.full(len(self.rows), -1, np.int8)
        for number, names in reversed(list(enumerate(section_alternatives(sections)))):
            wanted = sum(TEXT_BITS[name] for name in set(names))
            source[(has & wanted) > 0] = number
        return source

    def has_conversation(self) -> np.ndarray:
        return np.full(len(self), True) if self.change else (self.column("has") & CONVERSATION) > 0

    def image_counts(self) -> np.ndarray:
        """(n,) images of each study, dropped ones among them (a study that lost all is gone)."""
        counts = np.diff(self.columns.numbers["image_start"]).astype(np.int32)
        return counts if self.is_all else counts[self.rows]


def _chunks(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """The values of these rows, sorted, chunk by chunk; and their numbers."""
    rows = np.sort(rows)
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    cuts = [0, *np.searchsorted(rows, ends).tolist()]
    for chunk, end, first, last in zip(column.chunks, ends, cuts[:-1], cuts[1:], strict=True):
        if last > first:
            yield chunk.take(pa.array(rows[first:last] - (end - len(chunk)))), rows[first:last]


def _values(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[str]:
    """The texts of these rows, in any order."""
    for begin in range(0, len(rows), BLOCK):
        yield from column.take(pa.array(rows[begin : begin + BLOCK])).to_pylist()
