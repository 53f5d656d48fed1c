"""The prior studies of a large master file: looked up in its columns, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from hf_medvlm.data.column_parts import hash64
from hf_medvlm.data.columns import BLOCK, StudyTable
from hf_medvlm.data.study import Study


class TablePriors(Mapping[str, Study]):
    """study_id -> the prior study.

    Args:
        table: any table of the file.
        priors: (studies of the file,) int32: the number of the prior, -1 where there is none.
    """

    def __init__(self, table: StudyTable, priors: np.ndarray) -> None:
        self.table, self.priors = table, priors

    def _prior(self, study_id: object) -> int:
        ids, rows = (self.table.columns.numbers[name] for name in ("sorted_study", "sorted_row"))
        wanted = np.uint64(hash64(str(study_id)))
        place = int(np.searchsorted(ids, wanted))
        return int(self.priors[rows[place]]) if place < len(ids) and ids[place] == wanted else -1

    def __getitem__(self, study_id: str) -> Study:
        prior = self._prior(study_id)
        if prior < 0:
            raise KeyError(study_id)
        return self.table.numbered(prior)

    def __contains__(self, study_id: object) -> bool:
        return self._prior(study_id) >= 0

    def __len__(self) -> int:
        return int((self.priors >= 0).sum())

    def __iter__(self) -> Iterator[str]:
        return (self.table.whole(number).study_id for number in np.flatnonzero(self.priors >= 0).tolist())


def priors_of(tables: Sequence[StudyTable], check: Callable[[Study, Study], None]) -> tuple[TablePriors, int]:
    """The priors that are among the studies of these tables, and how many studies name another one.

    Args:
        check: raises for a prior that is none; called for those of another patient, or of a later day.
    """
    numbers, absent = tables[0].columns.numbers, 0
    there = np.zeros(len(tables[0].columns), bool)
    for table in tables:
        there[table.rows] = True
    priors = np.full(len(there), -1, np.int32)
    for table in tables:
        named = numbers["prior"][table.rows]
        known = (named >= 0) & there[named]
        absent += int(((named != -1) & ~known).sum())
        rows, before = table.rows[known], named[known]
        for begin in range(0, len(rows), BLOCK):
            of_block = rows[begin : begin + BLOCK], before[begin : begin + BLOCK]
            for place in np.flatnonzero(_odd(tables[0], *of_block)).tolist():
                check(*(table.numbered(int(part[place])) for part in of_block))
        priors[rows] = before
    return TablePriors(tables[0], priors), absent


def _odd(table: StudyTable, rows: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Whether a study and its prior differ in the patient, or are one, or the prior is of a later day."""
    patient, dates = table.columns.numbers["patient"], table.columns.texts["study_date"]
    now, then = (dates.take(pa.array(part)).to_pylist() for part in (rows, before))
    later = [b[: min(len(a), len(b))] > a[: min(len(a), len(b))] for a, b in zip(now, then, strict=True)]
    return (patient[rows] != patient[before]) | np.array(later, bool) | (rows == before)
