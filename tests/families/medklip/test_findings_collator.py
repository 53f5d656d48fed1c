"""MedKLIP's collator: states of entities, sampled positions, RadGraph's triplets, and a flip that never happens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.medklip.collator import FindingsCollator, entity_states, study_triplets
from hf_medvlm.labels import MEDKLIP_POSITIONS

ENTITIES = ("effusion", "pneumothorax", "edema", "cardiomegaly")
REPORT = "Small left pleural effusion. No pneumothorax. There may be mild edema."


@pytest.fixture
def collator(splits):
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return FindingsCollator(processor, splits.image_folder, ENTITIES)


@pytest.fixture
def study(splits):
    return replace(splits.train[0], findings=REPORT, impression="")


def test_states_are_what_the_report_says(study):
    triplets = study_triplets(study)
    assert entity_states(triplets, ENTITIES).tolist() == [1, 0, -1, -1]
    assert entity_states(triplets, ENTITIES, "absent").tolist() == [1, 0, -1, 0]
    said_twice = [("mass", "pulmonary", "absent"), ("mass", "pulmonary", "uncertain")]
    assert entity_states(said_twice, ["mass"]).tolist() == [-1]
    assert entity_states([*said_twice, ("mass", "pulmonary", "present")], ["mass"]).tolist() == [1]


def test_the_first_position_is_right_and_no_other_is(collator, study):
    left = MEDKLIP_POSITIONS.index("left_pleural")
    seen = set()
    for epoch in range(30):
        index = collator([Row(study, epoch=epoch)])["position_index"]
        assert index.shape == (1, 4, 8)
        first, *others = index[0, 0].tolist()
        assert first == left and left not in others and len(set(others)) == 7
        assert not index[0, 1:].any()
        seen |= set(others)
    assert len(seen) > 40, "the wrong positions are drawn anew in each epoch"
    again = [collator([Row(study, epoch=4)])["position_index"] for _ in range(2)]
    assert torch.equal(*again)


def test_of_several_positions_each_is_drawn_and_none_is_a_wrong_one(collator, splits):
    both = replace(splits.train[0], findings="Bilateral pleural effusions.", impression="")
    right = {MEDKLIP_POSITIONS.index("left_pleural"), MEDKLIP_POSITIONS.index("right_pleural")}
    rows = [collator([Row(both, epoch=epoch)])["position_index"][0, 0].tolist() for epoch in range(30)]
    assert {row[0] for row in rows} == right
    assert all(not right & set(row[1:]) for row in rows)


def test_training_never_mirrors_the_image(tmp_path):
    """Positions name left and right."""
    Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None], 64, axis=0)).save(tmp_path / "ramp.png")
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    study = Study("s1", "p1", images=(StudyImage("ramp.png"),), findings="Clear.")
    training = FindingsCollator(processor, tmp_path, ENTITIES, training=True)
    for epoch in range(40):
        pixels = training([Row(study, epoch=epoch)])["pixel_values"]
        assert pixels[..., 32:].mean() > pixels[..., :32].mean() + 0.5


def test_triplets_of_the_study_itself_win_over_its_report(study):
    with_triplets = replace(study, triplets=(("mass", "pulmonary", "present"),))
    assert study_triplets(with_triplets) == [("mass", "pulmonary", "present")]
    with pytest.raises(ValueError, match=f"{study.study_id}.* no triplet"):
        replace(study, triplets=(("mass", "present"),))


def test_bad_settings_and_studies_are_refused(collator):
    for changes, message in (
        ({"entities": ()}, "list of entities is empty"),
        ({"unmentioned": "zero"}, "unmentioned must be one of ignore, absent"),
        ({"position_samples": 1}, "2 to 51"),
        ({"position_samples": 99}, "2 to 51"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(collator, **changes)
    with pytest.raises(ValueError, match="'s1' has no image"):
        collator([Study("s1", "p1", findings="Clear.")])


def test_labels_and_shapes_of_a_batch(collator, splits):
    batch = collator(splits.train[:5])
    assert batch["pixel_values"].shape == (5, 3, 32, 32)
    assert batch["labels"].shape == (5, 4) and batch["labels"].dtype == torch.int64
    assert batch["position_index"].max() < len(MEDKLIP_POSITIONS)
    present = np.array([study.labels["Pleural Effusion"] == 1 for study in splits.train[:5]])
    assert ((batch["labels"][:, 0] == 1).numpy() == present).all()


def test_an_opacity_is_not_absent_where_a_kind_of_it_is_named():
    asked, present = ["opacity", "consolidation", "effusion"], ("consolidation", "right_lower_lung", "present")
    assert entity_states([present], asked, "absent").tolist() == [-1, 1, 0]
    assert entity_states([present, ("opacity", "", "absent")], asked, "absent").tolist() == [0, 1, 0]
    assert entity_states([("consolidation", "", "absent")], asked, "absent").tolist() == [0, 0, 0]
    assert entity_states([present], asked).tolist() == [-1, 1, -1]
