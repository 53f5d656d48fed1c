"""A large master file as a sequence of studies: no Python object a study, but its columns, memory-mapped.

A study is read from its line when it is asked for. What must be known of all studies (splits, patients, leaks, texts,
licences) is answered by the columns (`column_index.py`), with the answers that the studies one by one give.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_medvlm.data.column_index import CONVERSATION, TEXT_BITS, open_columns
from hf_medvlm.data.fields import section_alternatives
from hf_medvlm.data.quality import without_images
from hf_medvlm.data.splits import deal, patient_fraction
from hf_medvlm.data.study import Study
from hf_medvlm.labels import SPLITS

ROWS_BELOW = 4 * 2**20
"""Bytes; of a smaller master file the studies are kept as objects."""


class StudyTable(Sequence[Study]):
    """The studies of a master file, or some of them, in its order. Slices are tables too; can be sent to workers.

    Args:
        path: of the JSONL file.
        columns: of `open_columns`.
        rows: the numbers of the studies; by default all.
        splits: (studies of the file,) int8, places in `SPLITS`; by default those of the file.
        dropped: number of a study -> the numbers of its images that are left out.
    """

    def __init__(
        self,
        path: Path,
        columns: pa.Table,
        rows: np.ndarray | None = None,
        splits: np.ndarray | None = None,
        dropped: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.path, self.columns, self.dropped = path, columns, dropped or {}
        self.rows = np.arange(len(columns)) if rows is None else rows
        self.all_splits = self._whole("split") if splits is None else splits
        self._file: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: str | Path) -> StudyTable:
        """Raises `NotPlain` where `read_jsonl` must look at the file."""
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
        study = self.whole(number)
        split = int(self.all_splits[number])
        if split >= 0 and study.split != SPLITS[split]:
            study = replace(study, split=SPLITS[split])
        return without_images(study, self.dropped[number]) if number in self.dropped else study

    def whole(self, number: int) -> Study:
        """A study of the file with all its images."""
        return Study.from_dict(json.loads(self._line(number)))

    def __iter__(self) -> Iterator[Study]:
        return (self[index] for index in range(len(self.rows)))

    def _line(self, number: int) -> bytes:
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), os.open(self.path, os.O_RDONLY))
        begin, length = (self.columns[name][number].as_py() for name in ("offset", "length"))
        return os.pread(self._file[1], length, begin)

    def __del__(self) -> None:
        file: tuple[int, int] | None = getattr(self, "_file", None)
        if file is not None and file[0] == os.getpid():
            os.close(file[1])

    def at(self, rows: np.ndarray) -> StudyTable:
        """The studies with these numbers."""
        return StudyTable(self.path, self.columns, rows, self.all_splits, self.dropped)

    def _whole(self, name: str) -> np.ndarray:
        return self.columns[name].combine_chunks().to_numpy()

    def column(self, name: str) -> np.ndarray:
        """A column of numbers of these studies."""
        return self._whole(name)[self.rows]

    @property
    def split(self) -> np.ndarray:
        """(n,) int8, places in `SPLITS`, -1 where there is none."""
        return self.all_splits[self.rows]

    # -- what is asked of all studies ---------------------------------------------------------------------------------

    def in_split(self, name: str, limit: int | None = None) -> StudyTable:
        """The studies of a split, at most so many."""
        return self.at(self.rows[self.split == SPLITS.index(name)][:limit])

    def with_splits(self, held_out: bool = False) -> StudyTable:
        """`splits.assign_splits`; with `held_out`, `test` for each study that has no split."""
        splits = self.all_splits.copy()
        free = self.rows[splits[self.rows] < 0]
        if held_out:
            splits[free] = SPLITS.index("test")
        elif len(free):
            patients, first, place = np.unique(self.column("patient"), return_index=True, return_inverse=True)
            of_patient = np.full(len(patients), -1, np.int8)
            given = np.flatnonzero(self.split >= 0)
            of_patient[place[given]] = self.split[given]  # of several the last counts, as in `assign_splits`
            unknown = np.flatnonzero(of_patient < 0)
            ids = self.columns["patient_id"].take(pa.array(self.rows[first[unknown]]))
            fractions = np.fromiter((patient_fraction(each.as_py()) for each in ids), float, len(unknown))
            names = deal(np.sort(fractions), bool(len(given)))
            codes = np.array([SPLITS.index(name) for name, count in names for _ in range(count)], np.int8)
            of_patient[unknown[np.argsort(fractions)]] = codes
            splits[free] = of_patient[place[self.split < 0]]
        return StudyTable(self.path, self.columns, self.rows, splits, self.dropped)

    def leaks(self) -> dict[str, list[str]]:
        """`quality.find_leakage`."""
        known = np.flatnonzero(self.split >= 0)
        patient, place = np.unique(self.column("patient")[known], return_inverse=True)
        seen = np.zeros(len(patient), np.int64)
        np.bitwise_or.at(seen, place, 1 << self.split[known].astype(np.int64))
        several = np.flatnonzero(seen & (seen - 1))
        if not len(several):
            return {}
        guilty = known[np.isin(place, several)]
        names: dict[str, set[str]] = {}
        for index in guilty.tolist():
            patient_id = self.columns["patient_id"][int(self.rows[index])].as_py()
            names.setdefault(patient_id, set()).add(SPLITS[self.split[index]])
        return {name: sorted(splits) for name, splits in names.items()}

    def patients(self) -> np.ndarray:
        """The patients' hashes, each once."""
        return np.unique(self.column("patient"))

    def image_hashes(self) -> np.ndarray:
        """The images' hashes, each once."""
        return np.unique(self.columns["image"].take(pa.array(self.rows)).combine_chunks().flatten().to_numpy())

    def image_paths(self) -> pa.Array:
        """The paths of all images, dropped ones among them."""
        return self.columns["images"].take(pa.array(self.rows)).combine_chunks().flatten()

    def texts(self, name: str) -> Counter[str]:
        """`source` or `licence` -> how many studies have it."""
        column = self.columns[name]
        if len(self.rows) < len(self.columns):
            column = column.take(pa.array(self.rows))
        pairs = column.value_counts().to_pylist()
        return Counter({pair["values"]: pair["counts"] for pair in pairs})

    def without_broken(self, broken: Mapping[str, str]) -> tuple[StudyTable, list[tuple[int, list[int]]]]:
        """The table without images in `broken`, and without studies that have none left; (number, images) of those that
        lost some."""
        lists = self.columns["images"].take(pa.array(self.rows)).combine_chunks()
        bad = pc.is_in(lists.flatten(), value_set=pa.array(list(broken), pa.string())).to_numpy(zero_copy_only=False)
        owner = pc.list_parent_indices(lists).to_numpy()
        counts = pc.list_value_length(lists).to_numpy()
        starts = np.concatenate([[0], np.cumsum(counts)])
        lost = []
        for index in np.unique(owner[bad]).tolist():
            places = np.flatnonzero(bad[starts[index] : starts[index + 1]]).tolist()
            lost.append((int(self.rows[index]), places))
        empty = {number for number, places in lost if len(places) == self._images(number)}
        kept = self.rows[~np.isin(self.rows, list(empty))] if empty else self.rows
        dropped = {**self.dropped, **{number: places for number, places in lost if number not in empty}}
        return StudyTable(self.path, self.columns, kept, self.all_splits, dropped), lost

    def _images(self, number: int) -> int:
        return len(self.columns["images"][number])

    def text_sources(self, sections: str) -> np.ndarray:
        """(n,) the number of the first alternative of `sections` that a study has any text of; -1 where of none."""
        has, source = self.column("has"), np.full(len(self.rows), -1)
        for number, names in reversed(list(enumerate(section_alternatives(sections)))):
            wanted = sum(TEXT_BITS[name] for name in set(names))
            source[(has & wanted) > 0] = number
        return source

    def has_conversation(self) -> np.ndarray:
        return (self.column("has") & CONVERSATION) > 0

    def image_counts(self) -> np.ndarray:
        """(n,) images of each study, dropped ones among them (a study that lost all is gone)."""
        return pc.list_value_length(self.columns["images"]).combine_chunks().to_numpy()[self.rows]
