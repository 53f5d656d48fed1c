"""Options: recipe < YAML < command line; old names mapped once; unknown names answered with their neighbour."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from hf_medvlm.families.captioners.recipe import CaptioningArguments
from hf_medvlm.training import legacy
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse
from hf_medvlm.training.folders import choose_output_dir

GROUPS = {"data": DataArguments, "model": CaptioningArguments, "training": MedVLMArguments}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(legacy, "_said", set())
    monkeypatch.chdir(tmp_path)


def options(*argv: str, **kwargs):
    return parse("finetune_blip.py", list(argv), **GROUPS, **kwargs)


def test_the_command_line_wins_over_yaml_and_yaml_over_the_recipe(tmp_path):
    Path("c.yaml").write_text("learning_rate: 2.0e-5\nmax_length: 77\n")
    args = options("--config", "c.yaml", "--max_length", "99", defaults={"learning_rate": 1e-3, "prompt": "a "})
    assert (args.training.learning_rate, args.model.max_length, args.model.prompt) == (2e-5, 99, "a ")


def test_tiny_defaults_hold_only_without_a_checkpoint():
    tiny = {"max_steps": 1000, "learning_rate": 2e-3}
    assert options(tiny=tiny).training.max_steps == 1000
    named = options("--model_name_or_path", "x", tiny=tiny).training
    assert (named.max_steps, named.learning_rate) == (-1, 5e-5)
    assert options("--num_train_epochs", "2", tiny=tiny).training.max_steps == -1


def test_the_help_says_the_defaults_that_are_used_the_recipes_own_options_first(capsys):
    tiny = {"max_steps": 1234, "sections": "findings", "image_size": 96}

    def helped(*argv: str) -> str:
        with pytest.raises(SystemExit) as caught:
            options(*argv, "--help", tiny=tiny, defaults={"weight_decay": 0.125})
        assert caught.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    text = helped()
    assert "(default: 1234)" in text and "(default: 0.125)" in text and "(default: 96)" in text
    assert "(default: 1234)" not in helped("--dataset", "own.csv")
    places = [
        text.index(word) for word in ("data: --dataset", "model: ", "training: ", "transformers' TrainingArguments")
    ]
    assert places == sorted(places) and text.index("--per_device_train_batch_size") > places[-1]
    assert text.startswith("usage: finetune_blip.py [--config PLAN] [--OPTION VALUE ...]") and "--no_" not in text
    Path("c.yaml").write_text("learning_rate: 0.0625\n")
    assert "(default: 0.0625)" in helped("--config", "c.yaml")


def test_an_unknown_yaml_key_stops_the_run_and_names_line_and_neighbour(tmp_path):
    Path("blip.yaml").write_text("prompt: x\nmax_lenght: 64\n")
    with pytest.raises(SystemExit, match=r"blip\.yaml:2: unknown option 'max_lenght'; did you mean 'max_length'\?"):
        options("--config", "blip.yaml")


def test_an_unknown_option_names_its_neighbour():
    with pytest.raises(SystemExit, match="did you mean '--learning_rate'?"):
        options("--lerning_rate", "1")


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--warmup_ratio", "0.03"], "warmup_steps", 0.03),
        (["--warmup_ratio=0.03"], "warmup_steps", 0.03),
        (["--group_by_length", "True"], "train_sampling_strategy", "group_by_length"),
        (["--no_cuda"], "use_cpu", True),
        (["--push_to_hub_model_id", "a/b"], "hub_model_id", "a/b"),
        (["--save_safetensors", "True"], "save_strategy", "steps"),
        (["--adafactor"], "optim", "adafactor"),
    ],
)
def test_old_names_are_mapped_with_one_warning(old, name, value, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert getattr(options(*old).training, name) == value
    assert sum(old[0].partition("=")[0] in record.message for record in caplog.records) == 1


def test_old_names_in_yaml_are_mapped_too():
    Path("c.yaml").write_text("warmup_ratio: 0.1\nevaluation_strategy: epoch\n")
    training = options("--config", "c.yaml").training
    assert (training.warmup_steps, training.eval_strategy, training.save_strategy) == (0.1, "epoch", "epoch")


def test_without_evaluation_checkpoints_are_still_saved():
    assert options("--eval_strategy", "no").training.save_strategy == "steps"


def test_a_tracker_that_is_not_there_is_said_before_the_start():
    assert options("--report_to", "none").training.report_to == []
    with pytest.raises(SystemExit, match="no_such_tracker: no such tracker; there are .*wandb"):
        options("--report_to", "no_such_tracker")
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(SystemExit, match="wandb: it is not installed; pip install wandb"):
            options("--report_to", "wandb")


def test_nothing_is_pushed_by_the_trainer_itself():
    training = options("--push_to_hub", "--hub_model_id", "a/b").training
    assert training.push_when_done and not training.push_to_hub and training.hub_private_repo


def test_runs_are_numbered_and_a_finished_one_is_refused(tmp_path):
    assert choose_output_dir(None, "r", None, False) == "runs/r/1"
    Path("runs/r/9").mkdir(parents=True)
    assert choose_output_dir(None, "r", None, False) == "runs/r/10"
    assert choose_output_dir(None, "r", "True", False) == "runs/r/9"
    Path("runs/r/9/run.json").write_text("{}")
    with pytest.raises(ValueError, match="finished run.*--overwrite_output_dir"):
        choose_output_dir("runs/r/9", "r", None, False)
    assert choose_output_dir("runs/r/9", "r", None, True) == "runs/r/9"


def test_nothing_to_resume_is_an_error():
    with pytest.raises(ValueError, match="no earlier run"):
        choose_output_dir(None, "r", "True", False)
