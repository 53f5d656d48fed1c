"""Rows: what a data loader hands to a collator. A study with its place in the data set and the epoch it is drawn in."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import RawValue
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.study import Study, from_row, to_dataset


@dataclass(frozen=True)
class Row:
    """`index` is the study's place in its split; `epoch` feeds the augmentation, the same in a resumed run."""

    study: Study
    index: int = 0
    epoch: int = 0

    def rng(self, seed: int) -> np.random.Generator:
        """Random numbers of this study in this epoch: a function of nothing else, workers and resume included."""
        return np.random.default_rng([seed, self.epoch, zlib.crc32(self.study.study_id.encode())])


def as_rows(items: Iterable[Row | Study]) -> list[Row]:
    """Collators take rows; plain studies are accepted and counted from 0."""
    return [item if isinstance(item, Row) else Row(item, index) for index, item in enumerate(items)]


class StudyRows(Sequence):
    """The studies of one split as a map-style data set for a `DataLoader`, kept in Arrow and decoded on access.

    Those of a large master file stay in it.

    `set_epoch` is called by accelerate's data loader at the start of each epoch.
    """

    def __init__(self, studies: Iterable[Study]) -> None:
        self.table = studies if isinstance(studies, StudyTable) else to_dataset(studies)
        self._epoch = RawValue("q", 0)  # workers that outlive an epoch see the next one

    @property
    def epoch(self) -> int:
        return self._epoch.value

    def set_epoch(self, epoch: int) -> None:
        self._epoch.value = epoch

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is started shares the epoch; any other copy has its own."""
        shared = get_spawning_popen() is not None
        return self.__dict__ | {"_epoch": self._epoch if shared else self.epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        epoch = state["_epoch"]
        self.__dict__.update(state | {"_epoch": RawValue("q", epoch) if isinstance(epoch, int) else epoch})

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return Row(from_row(self.table[index]), index % len(self), self.epoch)

    @property
    def studies(self) -> list[Study]:
        return [from_row(row) for row in self.table]
