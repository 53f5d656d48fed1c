"""Splits by patient: no patient in two of them, the same on every machine, whatever the order of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_medvlm.data.study import Study
from hf_medvlm.labels import SPLITS


def patient_fraction(patient_id: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the patient's id and the seed alone (SHA-256, so the same everywhere)."""
    digest = hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def assign_splits(
    studies: Sequence[Study], seed: int = 0, validate: float = 0.1, test: float = 0.1, fill: bool = True
) -> list[Study]:
    """Give each study without a split that of its patient, and each patient without one a split by hash.

    A patient keeps the split when the corpus grows: the hash alone decides. Only where that would leave validate or
    test empty (a handful of patients) does the patient nearest to the border move over; with fewer than three
    patients all go to train.

    Args:
        validate, test: shares of the patients, each in [0, 1), together below 1.
        fill: move patients to splits that would be empty; without it the hash decides for each patient by itself, as
            it must where `studies` are but a part of the corpus.
    """
    if not (0 <= validate < 1 and 0 <= test < 1 and validate + test < 1):
        raise ValueError(f"validate and test are shares of the patients, together below 1; got {validate} and {test}")
    split_of = {study.patient_id: study.split for study in studies if study.split is not None}
    free = {study.patient_id for study in studies} - set(split_of)
    ordered = sorted((patient_fraction(patient, seed), patient) for patient in free)
    dealt = deal([fraction for fraction, _ in ordered], bool(split_of), validate, test, fill)
    names = [name for name, count in dealt for _ in range(count)]
    split_of |= {patient: name for (_, patient), name in zip(ordered, names, strict=True)}
    return [study if study.split else replace(study, split=split_of[study.patient_id]) for study in studies]


def deal(
    fractions: Sequence[float] | np.ndarray, begun: bool, validate: float = 0.1, test: float = 0.1, fill: bool = True
) -> list[tuple[str, int]]:
    """(split, how many patients) in the order of their fractions.

    Args:
        fractions: of the patients without a split, sorted.
        begun: other patients have a split already, so that none needs to be filled.
    """
    count = len(fractions)
    n_test = int(np.searchsorted(fractions, test, side="left"))
    n_validate = int(np.searchsorted(fractions, test + validate, side="left")) - n_test
    if fill and not begun and count < 3:
        n_test = n_validate = 0
    elif fill and not begun:
        n_test = max(n_test, int(test > 0))
        n_validate = max(n_validate, int(validate > 0))
        while n_test + n_validate >= count:  # a handful of patients: leave at least one to train on
            n_test, n_validate = (n_test - 1, n_validate) if n_test > n_validate else (n_test, n_validate - 1)
    train, held_out, tested = SPLITS
    return [(tested, n_test), (held_out, n_validate), (train, count - n_test - n_validate)]
