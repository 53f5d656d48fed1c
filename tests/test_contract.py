"""The contract of section 5 of the design, over every family of tests/families.py."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, build
from launch import together
from safetensors.torch import load_file
from steps import GLOBAL_BATCH, logged_losses, make_trainer
from transformers import AutoConfig

from hf_medvlm.data.rows import StudyRows, as_rows

pytestmark = pytest.mark.parametrize("name", sorted(FAMILIES))


@pytest.fixture(scope="module")
def _built(splits) -> dict[str, Family]:
    class Built(dict[str, Family]):
        def __missing__(self, name: str) -> Family:
            return self.setdefault(name, build(name, splits))

    return Built()


@pytest.fixture
def family(name: str, _built: dict[str, Family]) -> Family:
    return copy.deepcopy(_built[name])


@pytest.fixture(scope="module")
def studies(splits) -> list:
    return list(splits.train[:GLOBAL_BATCH])


def signal(family: Family, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return family.signal(family.model.eval(), batch)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_same_step(step: dict, wanted: dict, before: dict) -> None:
    """The same move from `before`: each tensor's move within 1e-4 of its own size."""
    for key, end in wanted.items():
        if key in step and end.is_floating_point():
            move = (end - before[key]).abs().max().item()
            assert (step[key] - end).abs().max().item() <= 1e-4 * move + 1e-6, key


def test_saved_and_loaded_again_it_is_the_same_to_the_bit(name, family, studies, tmp_path):
    batch = family.collator(False)(studies)
    family.model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = type(family.model).from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == family.model.config.model_type
    for (key, ours), theirs in zip(family.model.named_buffers(), dict(loaded.named_buffers()).values(), strict=True):
        assert torch.equal(ours, theirs), key
    wanted = signal(family, batch)
    family.model = loaded
    assert torch.equal(signal(family, batch), wanted)


def test_every_trainable_parameter_gets_a_gradient(name, family, studies):
    output = family.objective(family.model.train(), family.collator(False)(studies))
    assert torch.isfinite(output.loss)
    output.loss.backward()
    without = [key for key, p in family.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "no loss reaches these parameters: freeze them, or two processes wait for their gradients"


def test_more_padding_changes_nothing(name, family, studies):
    by_length = sorted(studies, key=lambda study: len(study.text()))
    collator = family.collator(False)
    alone = signal(family, collator(by_length[:1]))
    beside_longer = signal(family, collator([by_length[0], by_length[-1]]))
    torch.testing.assert_close(beside_longer[:1], alone, rtol=1e-4, atol=1e-5)


def test_forward_works_without_labels(name, family, studies):
    labels = {"labels", "pair_ids"}  # the identities of the pairs are what a contrastive model learns from
    batch = {key: value for key, value in family.collator(False)(studies).items() if key not in labels}
    assert family.model(**batch).loss is None


def test_collator_keys_are_parameters_of_forward(name, family, studies):
    parameters = set(inspect.signature(family.model.forward).parameters)
    assert set(family.collator(False)(studies)) <= parameters
    assert set(family.collator(True)(studies)) <= parameters


def test_collator_is_repeatable_and_leaves_its_input_alone(name, family, studies):
    rows, before = as_rows(studies), [study.to_dict() for study in studies]
    first, second = family.collator(True)(rows), family.collator(True)(rows)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row.study.to_dict() for row in rows] == before
    plain = family.collator(False)(rows)["pixel_values"]
    assert not torch.equal(plain, first["pixel_values"]), "training batches are augmented"
    assert torch.equal(plain, family.collator(False)(rows)["pixel_values"])


def test_accumulated_micro_batches_give_the_same_step(name, family, splits, tmp_path):
    """The stock Trainer multiplies BLIP's gradient by the number of micro-batches (transformers#47688)."""
    before = weights(family.model)
    whole = make_trainer(copy.deepcopy(family), splits, tmp_path)
    whole.train()
    cut = make_trainer(family, splits, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    cut.train()
    assert logged_losses(cut) == pytest.approx(logged_losses(whole), rel=1e-4)
    assert_same_step(weights(cut.model), weights(whole.model), before)


def test_metrics_do_not_depend_on_the_evaluation_batch(name, family, splits, tmp_path):
    rows = StudyRows(splits.test[:7])
    steps = []
    for size in (1, 3, 7):
        trainer = make_trainer(family, splits, tmp_path, per_device_eval_batch_size=size)
        scores = trainer.scores(rows)
        assert scores.n == 7 and len(scores.predictions) == 7
        steps.append(scores.metrics)
    for other in steps[1:]:
        assert other == pytest.approx(steps[0], rel=1e-4, abs=1e-6, nan_ok=True)


def test_it_overfits_eight_studies_and_uses_the_image(name, family, splits, tmp_path):
    eight = list({study.text(): study for study in splits.train}.values())[:GLOBAL_BATCH]  # no report twice
    trainer = make_trainer(family, splits, tmp_path, max_steps=40, optim="adamw_torch", learning_rate=3e-3)
    trainer.train_dataset = StudyRows(eight)
    trainer.train()
    losses = logged_losses(trainer)
    assert losses[-1] < 0.5 * losses[0]
    batch = family.collator(False)(eight)
    shuffled = batch | {"pixel_values": batch["pixel_values"].roll(1, 0)}
    with torch.no_grad():
        model = trainer.model.eval()
        assert family.objective(model, shuffled).loss > family.objective(model, batch).loss


def test_killed_and_resumed_it_ends_on_the_same_weights(name, family, splits, tmp_path):
    options = {"max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-3, "per_device_train_batch_size": 3}
    options |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    whole = make_trainer(copy.deepcopy(family), splits, tmp_path, **options)
    whole.data_collator = family.collator(True)
    whole.train()
    resumed = make_trainer(family, splits, tmp_path, **options)
    resumed.data_collator = family.collator(True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    ended = weights(resumed.model)
    assert all(torch.equal(ended[key], value) for key, value in weights(whole.model).items())
    for trainer in (whole, resumed):
        for entry in trainer.state.log_history[:-1]:
            terms = [value for key, value in entry.items() if key.startswith("loss/")]
            assert not terms or sum(terms) == pytest.approx(entry["loss"], rel=1e-3)


def test_bf16_and_gradient_checkpointing(name, family, splits, tmp_path):
    plain = make_trainer(copy.deepcopy(family), splits, tmp_path)
    plain.train()
    ours = type(family.model).__module__.startswith("hf_medvlm")
    assert family.model.supports_gradient_checkpointing or not ours, "set supports_gradient_checkpointing = True"
    if family.model.supports_gradient_checkpointing:
        saving = make_trainer(copy.deepcopy(family), splits, tmp_path, gradient_checkpointing=True)
        saving.train()
        for key, value in weights(plain.model).items():
            torch.testing.assert_close(weights(saving.model)[key], value, rtol=1e-3, atol=1e-4)
    half = make_trainer(family, splits, tmp_path, bf16=True)
    half.train()
    assert logged_losses(half) == pytest.approx(logged_losses(plain), rel=0.03)


@pytest.fixture(scope="module")
def alone(_built: dict[str, Family], splits, tmp_path_factory):
    """name -> losses, weights and metrics after the step in one process; each family takes it once for all modes."""
    done: dict[str, tuple[list[float], dict[str, torch.Tensor], dict]] = {}

    def step(name: str) -> tuple[list[float], dict[str, torch.Tensor], dict]:
        if name not in done:
            trainer = make_trainer(copy.deepcopy(_built[name]), splits, tmp_path_factory.mktemp(name))
            trainer.train()
            metrics = trainer.scores(trainer.eval_dataset).to_dict()["metrics"]
            done[name] = logged_losses(trainer), weights(trainer.model), metrics
        return done[name]

    return step


@pytest.fixture(scope="module")
def launched(cache: Path, root: Path, tmp_path_factory, request: pytest.FixtureRequest):
    """Runs tests/steps.py in two real processes, once a mode, for all families that were asked for (`-k`) together."""
    done: dict[str, Path] = {}
    here = [item for item in request.session.items if item.path == request.path and "launched" in item.fixturenames]
    names = {item.callspec.params["name"] for item in here}

    def run(mode: str) -> Path:
        if mode not in done:
            out = done[mode] = tmp_path_factory.mktemp(mode)
            sharded = [] if mode == "ddp" else ["--deepspeed", root / "ds_configs" / f"{mode}.json"]
            together(root / "tests" / "steps.py", out, *sorted(names), *sharded)
        return done[mode]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3"])
def test_two_processes_take_the_same_step_and_count_each_study_once(name, mode, _built, alone, launched):
    before = weights(_built[name].model)
    losses, ended, wanted = alone(name)
    out = launched(mode)
    step = json.loads((out / f"{name}.json").read_text())
    assert step["losses"] == pytest.approx(losses, rel=1e-4)
    files = sorted(path.name for path in (out / name).glob("*.safetensors"))
    assert files == ["model.safetensors"]
    assert_same_step(load_file(out / name / "model.safetensors"), ended, before)
    assert step["n"] == 7
    for metric, value in wanted.items():
        if value is None or math.isnan(value):
            assert step["metrics"][metric] is None
        else:
            assert step["metrics"][metric] == pytest.approx(value, rel=1e-3, abs=1e-5), metric
