"""The preflight: what it says of a sound run, and what it stops, with the way out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import build
from hub_server import TOKEN, HubServer
from torch import nn

from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks
from hf_medvlm.training.preflight import _supervision, preflight
from hf_medvlm.training.preflight_resources import check_trackers, parameter_sizes, training_bytes


def checks_of(splits, tmp_path, family="blip", **options):
    """Preflight of a run of `family`: what was looked at -> [(state, found)]."""
    made = build(family, splits)
    training = MedVLMArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **options)
    trainer = made.trainer_class(
        model=made.model,
        args=training,
        data_collator=made.collator(True),
        evaluation=made.evaluation,
        train_dataset=StudyRows(splits.train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=getattr(made.evaluation, "tokenizer", None),
    )
    checks = preflight(trainer, splits, SimpleNamespace(training=training))
    told = {}
    for state, what, text in checks.lines:
        told.setdefault(what, []).append((state, text))
    return told, checks


def test_a_sound_run_is_ok_from_top_to_bottom(splits, tmp_path):
    told, checks = checks_of(splits, tmp_path, gradient_accumulation_steps=3, max_steps=10, dry_run=True)
    assert {state for lines in told.values() for state, _ in lines} == {OK}
    assert {"data", "leakage", "supervised", "batch", "model", "steps", "memory", "disk", "metrics"} <= set(told)
    assert "10 steps of 24 studies (8 a device x 3 accumulated x 1 processes)" in told["steps"][0][1]
    words = told["supervised"][1][1].lower().replace("' ", "'").split()[:3]
    assert words[0].strip("'\"") in splits.train[0].text().lower()
    checks.stop_if_needed()


def test_a_patient_in_two_splits_stops_the_run(splits, tmp_path):
    one = splits.train[0]
    other = replace(splits.test[0], patient_id=one.patient_id)
    leaky = Splits({"train": splits.train, "validate": splits.validate, "test": [other]}, splits.image_folder, "x")
    told, checks = checks_of(leaky, tmp_path)
    assert told["leakage"][0][0] == STOP and repr(one.patient_id) in told["leakage"][0][1]
    with pytest.raises(ValueError, match="the preflight stops the run.*two splits.*--patient_column"):
        checks.stop_if_needed()


def test_an_image_in_two_splits_is_a_warning(splits, tmp_path):
    other = replace(splits.test[0], images=splits.train[0].images)
    leaky = Splits({"train": splits.train, "validate": [], "test": [other]}, splits.image_folder, "x")
    told, _ = checks_of(leaky, tmp_path, eval_strategy="no")
    assert told["leakage"][0][0] == WARNING
    assert (WARNING, "the validate split is empty; there will be no validate scores") in told["data"]


def test_memory_is_the_sum_that_zero_s_paper_gives():
    model = nn.ModuleList([nn.Linear(100, 10, bias=False), nn.Linear(50, 10, bias=False)])
    model[1].requires_grad_(False)
    sizes = parameter_sizes(model.to(torch.bfloat16))
    assert sizes == [(1000, 2, True), (500, 2, False)]
    assert training_bytes(sizes) == 3000 + 2000 + 8000
    assert training_bytes(sizes, 1, 4) == 3000 + 2000 + 2000
    assert training_bytes(sizes, 2, 4) == 3000 + 500 + 2000
    assert training_bytes(sizes, 3, 4) == 750 + 500 + 2000


def test_a_full_disk_stops_the_run(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    told, _ = checks_of(splits, tmp_path)
    assert told["disk"][0][0] == STOP and "--save_total_limit" in told["disk"][0][1]


def test_a_tracker_that_is_not_installed_stops_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    checks = Checks()
    check_trackers(checks, ["wandb", "none"])
    assert checks.lines == [(STOP, "tracker", "--report_to wandb, but it is not installed: pip install wandb")]


def test_a_push_lists_its_files_and_tries_the_hub(splits, tmp_path, monkeypatch):
    from huggingface_hub import constants

    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", hub.url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        told, _ = checks_of(splits, tmp_path, push_to_hub=True, hub_token=TOKEN)
        assert told["Hub"] == [(OK, "it answers and knows you")] and hub.repos == {}
        assert "(private)" in told["push"][0][1] and "model.safetensors" in told["push"][0][1]
        told, _ = checks_of(splits, tmp_path, push_to_hub=True, hub_token="hf_wrong")
        assert told["Hub"][0][0] == WARNING and "push later with" in told["Hub"][0][1]


def test_an_offline_hub_and_closed_data_are_told_before_training(splits, tmp_path):
    closed = [replace(s, source="MIMIC-CXR", licence="PhysioNet Credentialed") for s in splits.train]
    data = Splits({"train": closed, "validate": splits.validate, "test": splits.test}, splits.image_folder, "x")
    told, _ = checks_of(data, tmp_path, push_to_hub=True, hub_private_repo=False)
    assert told["Hub"] == [(WARNING, "HF_HUB_OFFLINE is set; unset it, or leave out --push_to_hub")]
    assert told["push"][1][0] == STOP and "--hub_public_acknowledged" in told["push"][1][1]


def test_a_misspelt_best_metric_stops_the_run_and_an_undefined_one_is_no_better(splits, tmp_path):
    told, checks = checks_of(splits, tmp_path, metric_for_best_model="cidre")
    assert told["best metric"] == [(STOP, told["best metric"][0][1])] and "'cider'" in told["best metric"][0][1]
    assert "best metric" not in checks_of(splits, tmp_path, metric_for_best_model="eval_findings_f1_micro")[0]
    made = build("medklip", splits)
    trainer = made.trainer_class(
        model=made.model,
        args=MedVLMArguments(output_dir=str(tmp_path / "out"), use_cpu=True, metric_for_best_model="mean_auc"),
        evaluation=made.evaluation,
        eval_dataset=StudyRows(splits.validate),
    )
    trainer._undefined = {"eval_mean_auc"}  # a validation split without both classes of any finding
    assert trainer._determine_best_metric({"eval_mean_f1": 0.5}, None) is False
    trainer._undefined = set()
    with pytest.raises(ValueError, match="--metric_for_best_model mean_auc: there is no such score.*mean_f1"):
        trainer._determine_best_metric({"eval_mean_f1": 0.5}, None)


@pytest.mark.parametrize(
    ("labels", "state", "counts"),
    [
        (torch.tensor([0, 2, -100]), OK, "[1, 1, 0]"),  # a class of each study
        (torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]]), OK, "[2, 0]"),  # findings, below 0 where not known
        (torch.tensor([-1.0, -1.0]), WARNING, "[0, 0]"),
    ],
)
def test_labels_of_any_shape_are_counted_where_they_are_known(splits, labels, state, counts):
    checks = Checks()
    trainer = SimpleNamespace(train_dataset=StudyRows(splits.train[:3]), data_collator=lambda rows: {"labels": labels})
    _supervision(checks, trainer, show_text=True)
    assert checks.lines[0][:2] == (state, "supervised") and checks.lines[0][2].startswith(f"{counts} labels")
    assert ("have the studies the labels" in checks.lines[0][2]) == (state == WARNING)
