"""Values of options are checked when they are parsed, whoever gives them; the message names the option."""

from __future__ import annotations

import pytest

from hf_medvlm.families.captioners.recipe import DEFAULTS, TINY, CaptioningArguments
from hf_medvlm.families.dual_encoder.recipe import PairArguments
from hf_medvlm.training.arguments import DataArguments, MedVLMArguments, parse

CAPTIONER = {"data": DataArguments, "model": CaptioningArguments, "training": MedVLMArguments}
PAIRS = CAPTIONER | {"model": PairArguments}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An output folder is reserved where it is chosen, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)


def read(*argv: str, groups=CAPTIONER, out="never_made"):
    return parse("recipe.py", [*argv, "--output_dir", out], defaults=DEFAULTS, tiny=TINY, **groups)


@pytest.mark.parametrize(
    "words",
    [
        *("--gradient_accumulation_steps 0", "--gradient_accumulation_steps -1", "--per_device_train_batch_size 0"),
        *("--per_device_eval_batch_size -1", "--num_beams 0", "--num_beams 100000", "--lora_rank 1000000"),
        *("--learning_rate nan", "--learning_rate -1", "--learning_rate 1e999", "--weight_decay inf", "--seed -1"),
        *("--train_studies -1", "--eval_studies 0", "--synthetic_studies 0", "--image_size 7", "--image_size -1"),
        *("--save_steps 1.5", "--eval_steps 0", "--logging_steps nan", "--warmup_steps -2", "--max_length 0"),
        *("--adam_beta1 1", "--lora_dropout 1.0", "--dataloader_num_workers -1", "--save_total_limit 0"),
        *("--max_steps 0", "--max_steps -2", "--seed 1.5", "--max_steps 2020-01-01", "--sections finding"),
        *("--sections ,", "--eval_strategy sometimes", "--lr_scheduler_type nope", "--optim nope"),
        *("--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_kwargs [1]", "--log_level nope"),
        *('--accelerator_config {"nope":1}', "--debug nope", "--gradient_checkpointing perhaps"),
        *("--accelerator_config -Infinity", "--fsdp_config nowhere.json", "--accelerator_config {"),
    ],
)
def test_a_value_that_cannot_be_stops_the_recipe_in_one_line(words):
    option, value = words.split()
    with pytest.raises(SystemExit) as stop:
        read(option, value)
    message = str(stop.value)
    assert message.startswith("recipe.py: ") and "\n" not in message and len(message) < 1000
    assert option[2:] in message or option == "--log_level", message


def test_epochs_that_train_nothing_are_refused_and_steps_win_over_them():
    for epochs in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit, match="--num_train_epochs"):
            read("--num_train_epochs", epochs)
    assert read("--num_train_epochs", "0", "--max_steps", "3").training.max_steps == 3
    with pytest.raises(SystemExit, match="--early_stopping_patience needs evaluations"):
        read("--early_stopping_patience", "2", "--eval_strategy", "no")


def test_choices_of_a_family_are_named():
    with pytest.raises(SystemExit, match="--loss nope: there are info_nce, sigmoid"):
        read("--loss", "nope", groups=PAIRS)
    with pytest.raises(SystemExit, match="--sentence_share 1.5: a finite number of at least 0 and at most 1 is needed"):
        read("--sentence_share", "1.5", groups=PAIRS)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("seed: 1.5", "seed: 1.5"),
        ("seed: [1]", "seed: .*single value"),
        ("seed: true", "seed: True"),
        ("deepspeed: 5", "--deepspeed 5"),
        ("max_steps: 2020-01-01", "max_steps: datetime.date"),
        ("learning_rate: 1e999999", "--learning_rate inf"),
        ("max_steps: 3\nmax_steps: 4", "config.yaml:2: 'max_steps' stands twice"),
        ("a: &x [1]\nb: *x", r"config.yaml:2: the alias \*x is not read"),
        ("- 1", "expected 'name: value' lines"),
        ("seed: {", "config.yaml:.*not YAML"),
        ("? [1]\n: 2", "config.yaml.*not YAML"),
        ("[" * 5000, "nested too deep"),
        ("seed: 2020-99-99", "config.yaml"),
        ("\x00", "config.yaml"),
    ],
)
def test_a_yaml_file_gives_what_the_command_line_could_give_or_is_refused_with_its_name(tmp_path, line, reason):
    path = tmp_path / "config.yaml"
    path.write_text(line)
    with pytest.raises(SystemExit, match=reason):
        read("--config", str(path))


def test_right_values_of_a_yaml_file_are_typed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "eval_strategy: no\nlearning_rate: 1e-4\nnum_beams: 2\naugment: false\ntrain: vision\nlora_alpha: null\n"
    )
    args = read("--config", str(path), "--num_beams", "3")
    assert args.training.eval_strategy == "no" and args.training.learning_rate == 1e-4 and args.model.num_beams == 3
    assert args.training.augment is False and args.model.train == "vision" and args.model.lora_alpha is None
    path.write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(SystemExit, match="config.yaml:1: not UTF-8"):
        read("--config", str(path))
