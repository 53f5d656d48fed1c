"""Pairs with their priors: which study is a prior, what is refused, what a batch holds."""

import logging
from dataclasses import replace

import pytest
import torch
from families import build

from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.biovil_t.collator import PROGRESSIONS, find_priors, progression_labels
from hf_medvlm.labels import IGNORE_INDEX

IMAGES = (StudyImage("a.png", "PA"),)
EARLY = Study("s1", "p1", images=IMAGES, study_date="2180-05-06T10:00:00")
LATE = Study("s2", "p1", images=IMAGES, study_date="2180-05-07", prior_study_id="s1")


def test_priors_are_found_and_absent_ones_counted(caplog):
    orphan = Study("s3", "p1", images=IMAGES, prior_study_id="s0")
    blind = [Study("s4", "p2"), Study("s5", "p2", images=IMAGES, prior_study_id="s4")]
    with caplog.at_level(logging.WARNING):
        assert find_priors([EARLY, LATE, orphan, *blind]) == {"s2": EARLY}
    assert "2 studies name a prior that is not in the data set" in caplog.text


@pytest.mark.parametrize(
    ("study", "match"),
    [
        (replace(LATE, patient_id="p2"), "'s2' of patient 'p2' names 's1' as its prior, which is of patient 'p1'"),
        (replace(LATE, study_date="2180-05-05"), "'s2' of 2180-05-05 names 's1' of 2180-05-06T10:00:00 as its prior"),
        (replace(LATE, prior_study_id="s2"), "names 's2' of 2180-05-07 as its prior, which is no earlier"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(study, match):
    with pytest.raises(ValueError, match=match):
        find_priors([EARLY, study])


def test_a_prior_of_the_same_day_is_one():
    assert find_priors([EARLY, replace(LATE, study_date="2180-05-06")])


def test_progression_labels():
    study = replace(LATE, progression={"Edema": "worsening", "Pneumonia": "stable"})
    assert progression_labels(study, ["Pneumonia", "Pneumothorax", "Edema"]) == [1, IGNORE_INDEX, 2]
    assert PROGRESSIONS == ("improving", "stable", "worsening")
    with pytest.raises(ValueError, match="'s2': progression of 'Edema' is 'better'"):
        replace(LATE, progression={"Edema": "better"})


@pytest.fixture(scope="module")
def collator(splits):
    return build("biovil_t", splits).collator


def test_a_batch_holds_the_priors_pixels_and_the_labels(collator, splits):
    plain, studies = collator(False), splits.train[:8]
    batch = plain(studies)
    by_id = {study.study_id: study for study in splits.train}
    assert batch["has_previous"].any() and not batch["has_previous"].all()
    for row, study in enumerate(studies):
        if batch["has_previous"][row]:
            alone = plain([by_id[study.prior_study_id]])
            assert torch.equal(batch["previous_pixel_values"][row], alone["pixel_values"][0])
        else:
            assert batch["previous_pixel_values"][row].abs().max() == 0
            assert (batch["progression"][row] == IGNORE_INDEX).all()
        states = [study.labels.get(name) for name in plain.findings]
        assert batch["findings"][row].tolist() == [s if s in (0, 1) else IGNORE_INDEX for s in states]
    assert (batch["progression"] != IGNORE_INDEX).any()


def test_without_priors_no_change_is_supervised(collator, splits):
    batch = replace(collator(False), priors={})(splits.train[:8])
    assert not batch["has_previous"].any() and (batch["progression"] == IGNORE_INDEX).all()


def test_current_and_previous_image_are_augmented_alike(collator, splits):
    """With the study as its own prior both images are the same, in every epoch another."""
    study = splits.train[0]
    training = replace(collator(True), priors={study.study_id: study})
    epochs = [training([Row(study, 0, epoch)]) for epoch in range(2)]
    for batch in epochs:
        assert torch.equal(batch["pixel_values"], batch["previous_pixel_values"])
    assert not torch.equal(epochs[0]["pixel_values"], epochs[1]["pixel_values"])
