"""Splits by patient through a hash."""

import random
from collections import Counter

import pytest

from hf_medvlm.data.splits import assign_splits, patient_fraction
from hf_medvlm.data.study import Study


def studies_of(patients, each=3, split=None):
    return [Study(f"s{p}-{n}", f"p{p}", split) for p in patients for n in range(each)]


def split_of(studies):
    pairs = {(study.patient_id, study.split) for study in studies}
    assert len(pairs) == len(dict(pairs))  # no patient in two splits
    return dict(pairs)


def test_shares_are_those_asked_for_and_no_order_matters():
    studies = studies_of(range(4000), each=2)
    splits = split_of(assign_splits(studies, seed=1, validate=0.2, test=0.1))
    counts = Counter(splits.values())
    assert abs(counts["validate"] / 4000 - 0.2) < 0.02 and abs(counts["test"] / 4000 - 0.1) < 0.02
    random.Random(0).shuffle(studies)
    assert split_of(assign_splits(studies, seed=1, validate=0.2, test=0.1)) == splits
    assert split_of(assign_splits(studies, seed=2, validate=0.2, test=0.1)) != splits


def test_a_growing_corpus_keeps_its_splits():
    few = split_of(assign_splits(studies_of(range(300))))
    many = split_of(assign_splits(studies_of(range(900))))
    assert few == {patient: many[patient] for patient in few}


def test_the_hash_is_the_same_on_every_machine():
    assert patient_fraction("10000032") == pytest.approx(0.322118, abs=1e-6)


def test_a_handful_of_patients_still_has_all_three_splits():
    for seed in range(50):
        for count in (3, 4, 10):
            splits = split_of(assign_splits(studies_of(range(count)), seed=seed))
            assert set(splits.values()) == {"train", "validate", "test"}
    assert set(split_of(assign_splits(studies_of(range(2)))).values()) == {"train"}
    assert "test" not in split_of(assign_splits(studies_of(range(20)), test=0)).values()


def test_without_filling_a_part_is_split_as_in_the_whole():
    whole = split_of(assign_splits(studies_of(range(400))))
    for start in range(0, 400, 4):
        part = split_of(assign_splits(studies_of(range(start, start + 4)), fill=False))
        assert part == {patient: whole[patient] for patient in part}


def test_a_split_that_is_there_is_kept_for_all_of_the_patient():
    given = studies_of([1], split="test") + [Study("new", "p1")] + studies_of(range(2, 200))
    done = assign_splits(given)
    assert [study.split for study in done[:4]] == ["test"] * 4
    assert [(s.study_id, s.patient_id) for s in done] == [(s.study_id, s.patient_id) for s in given]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares):
    with pytest.raises(ValueError, match="shares of the patients"):
        assign_splits([], validate=shares[0], test=shares[1])
