"""MedKLIP's scores: thresholds from validation alone, boxes and maps in one frame, held-out entities apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

from hf_medvlm.data.study import Study, StudyBox, StudyImage
from hf_medvlm.families.medklip.collator import FindingsCollator
from hf_medvlm.families.medklip.descriptions import describe, hashed_embeddings
from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation, boxed_entities, location_scores
from hf_medvlm.families.medklip.inference import load_predictor
from hf_medvlm.families.medklip.model import MedKlipModel
from hf_medvlm.families.medklip.recipe import MedKlipArguments, choose_entities, embed, is_published, load_medklip

NAMES = ("effusion", "edema")


@pytest.fixture
def evaluation(splits):
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return MedKlipEvaluation(FindingsCollator(processor, splits.image_folder, NAMES, unmentioned="absent"))


def outputs(probability, labels, maps=None, size=(8, 8)):
    maps = np.full((len(labels), len(labels[0]), 2, 2), 0.25) if maps is None else maps
    arrays = {"probability": probability, "labels": labels, "maps": maps, "size": [size] * len(labels)}
    arrays["evidence"] = np.zeros_like(maps)
    return {name: [np.array(row) for row in rows] for name, rows in arrays.items()}


def studies(split, count=4, **fields):
    return [Study(f"{split}{i}", f"p{i}", split, (StudyImage(f"{i}.png"),), "Clear.", **fields) for i in range(count)]


def test_thresholds_are_chosen_on_validation_and_kept_for_test(evaluation):
    labels = [[1, 0], [1, 0], [0, 1], [0, -1]]
    early = evaluation.score(outputs(np.full((4, 2), 0.5), labels), studies("test"))
    assert np.isnan(early.metrics["mean_f1"]) and "not chosen" in early.protocol["mean_f1"]
    chosen_on = np.array([[0.30, 0.1], [0.28, 0.1], [0.10, 0.2], [0.10, 0.9]])
    validation = evaluation.score(outputs(chosen_on, labels), studies("validate"))
    assert validation.metrics["mean_f1"] == 1 and "these very studies" in validation.protocol["mean_f1"]
    assert 0.10 < evaluation.thresholds[0] < 0.28
    # better thresholds for the test studies would be others; those of validation stay, and miss everything
    test = evaluation.score(outputs(chosen_on / 10, labels), studies("test"))
    assert test.metrics["mean_f1"] == 0 and test.metrics["mean_auc"] == 1
    assert test.figures["thresholds"] == validation.figures["thresholds"]
    assert test.intervals["mean_auc"] == test.intervals["mean_ap"] == (1.0, 1.0)
    assert test.figures["per_finding"]["edema"]["n"] == 3 and test.metrics["auc/effusion"] == 1


def test_what_its_published_list_misspells_is_shown_as_it_is_spelt(evaluation):
    evaluation.collator.entities = ("effusion", "eumonia")
    labels, likely = [[1, 0], [0, 1], [1, 1], [0, 0]], np.random.rand(4, 2)
    scores = evaluation.score(outputs(likely, labels), studies("test"))
    assert {"auc/effusion", "auc/pneumonia"} <= set(scores.metrics)
    told = json.dumps([list(scores.metrics), scores.predictions, list(scores.figures["per_finding"])], default=str)
    assert '"pneumonia"' in told and '"eumonia"' not in told and "/eumonia" not in told
    assert MedKlipArguments(held_out_entities="pneumonia").held_out == ("eumonia",)


def test_one_class_alone_is_undefined(evaluation):
    scores = evaluation.score(outputs(np.random.rand(4, 2), [[1, 0]] * 4), studies("test"))
    assert np.isnan(scores.metrics["auc/effusion"]) and np.isnan(scores.metrics["mean_auc"])
    assert scores.metrics["grounding_n"] == 0 and np.isnan(scores.metrics["pointing_game"])


def test_maps_are_held_against_the_boxes_of_their_entity(evaluation):
    boxes = (StudyBox(0, "left pleural effusion", (4.0, 4.0, 4.0, 4.0)), StudyBox(0, "mass", (0.0, 0.0, 8.0, 8.0)))
    study = studies("test", 1, boxes=boxes)[0]
    assert boxed_entities(study, NAMES) == {"effusion": [(4.0, 4.0, 4.0, 4.0)]}
    maps = np.zeros((1, 2, 2, 2))
    maps[0, 0, 1, 1] = 1.0  # below at the right, where the box is
    scores = evaluation.score(outputs([[0.9, 0.1]], [[1, 0]], maps), [study])
    assert scores.metrics["pointing_game"] == scores.metrics["dice"] == scores.metrics["mask_recall"] == 1
    assert scores.baselines["uniform_map"]["pointing_game"] == 0.25
    assert scores.predictions[0]["maps"] == {"effusion": [[0.0, 0.0], [0.0, 1.0]]}
    missed = evaluation.score(outputs([[0.9, 0.1]], [[1, 0]], maps[..., ::-1, :]), [study])
    assert missed.metrics["pointing_game"] == missed.metrics["dice"] == 0


def test_a_level_map_points_as_often_as_the_box_is_large():
    mask = np.zeros((10, 12), dtype=bool)
    mask[:5, :3] = True
    assert location_scores(np.full((3, 4), 1 / 12), mask)["pointing_game"] == pytest.approx(mask.mean())


def test_held_out_entities_are_asked_beside_the_others_and_scored_apart(evaluation, splits):
    torch.manual_seed(0)
    model = MedKlipModel.tiny().eval()
    model.set_entity_embeddings(hashed_embeddings([describe(name) for name in NAMES]), NAMES)
    held_out = hashed_embeddings([describe("mass")])
    both = MedKlipEvaluation(replace(evaluation.collator, entities=(*NAMES, "mass")), held_out)
    with torch.no_grad():
        alone, asked = (e.predict(model, e.collate(splits.test[:6])) for e in (evaluation, both))
    assert asked["maps"].shape == (6, 3, 4, 4)
    assert torch.equal(asked["probability"][:, :2], alone["probability"]), "asking for more changes no answer"
    boxed = torch.tensor([[name in boxed_entities(study, NAMES) for name in NAMES] for study in splits.test[:6]])
    assert boxed.any() and asked["evidence"][boxed].any() and not asked["evidence"][~boxed].any()
    arrays = {name: list(tensor.numpy()) for name, tensor in asked.items()}
    scores = both.score(arrays, splits.test[:6])
    assert {"auc/effusion", "auc/edema", "held_out_auc/mass", "held_out_auc"} <= set(scores.metrics)
    assert "auc/mass" not in scores.metrics and "mass" in scores.figures["roc"]


def test_entities_are_those_that_the_reports_show(splits):
    chosen = choose_entities(splits.train, "absent", held_out=("edema",))
    assert {"effusion", "cardiomegaly"} <= set(chosen) and not {"edema", "normal", "finding"} & set(chosen)
    with pytest.raises(ValueError, match="no entity is present in 5% .* --unmentioned absent"):
        choose_entities([replace(splits.train[0], findings="Clear.", impression="")] * 30, "ignore")


def test_descriptions_of_the_user_are_read_and_checked(tmp_path):
    model, path = MedKlipModel.tiny(), tmp_path / "descriptions.json"
    path.write_text('{"effusion": "water", "edema": "water"}')
    described = embed(NAMES, model, MedKlipArguments(descriptions=str(path)))
    assert torch.equal(described[0], described[1])
    with pytest.raises(ValueError, match="mass is not described"):
        embed(["mass"], model, MedKlipArguments(descriptions=str(path)))
    with pytest.raises(ValueError, match="report and radgraph"):
        MedKlipArguments(findings_from="chexbert")
    assert is_published(str(path)) and is_published(str(tmp_path)) and not is_published("no/such/folder")


def test_what_people_read_says_pneumonia_and_load_uses_the_runs_thresholds(splits, tmp_path):
    """MedKLIP's list, whose order its checkpoints depend on, says "eumonia"."""
    options = MedKlipArguments(entities="pneumonia,effusion", image_size=32)
    model, processor = load_medklip(options, splits)
    assert list(model.config.entities) == ["eumonia", "effusion"]
    fresh = MedKlipEvaluation(FindingsCollator(processor, splits.image_folder, model.config.entities))
    labels = [[1, 0], [1, 0], [0, 1], [0, -1]]
    chosen = np.array([[0.30, 0.1], [0.28, 0.1], [0.10, 0.2], [0.10, 0.9]])
    boxes = (StudyBox(0, "pneumonia", (0.0, 0.0, 4.0, 4.0)),)
    scores = fresh.score(outputs(chosen, labels), studies("validate", boxes=boxes))
    assert scores.metrics["auc/pneumonia"] == 1 and scores.metrics["grounding_n"] == 4
    assert "eumonia" not in str((scores.metrics, scores.predictions, scores.figures)).replace("pneumonia", "")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fresh.write_settings(tmp_path)
    loaded = load_predictor(tmp_path, json.loads((tmp_path / "inference.json").read_text()), torch.float32)
    assert loaded.thresholds == dict(zip(("pneumonia", "effusion"), fresh.thresholds.tolist(), strict=True))
    told = loaded.tell({"probability": chosen[0]})
    assert set(told["probabilities"]) == {"pneumonia", "effusion"}
    assert model.config.id2label == {0: "absent", 1: "present"}
