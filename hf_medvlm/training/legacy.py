"""Option names of former versions, ours and transformers': mapped to their present names, with one warning each."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

logger = logging.getLogger(__name__)

# Delete a line when nobody's script has it any more. Sources: transformers' MIGRATION_GUIDE_V5.md, our first version.
RENAMED = {
    "freeze_image": "freeze_vision",
    "freeze_backbone": "freeze_vision",
    "freeze_text": "freeze_language",
    "lora_r": "lora_rank",
    "mm_projector_lr": "connector_lr",
    "mm_vision_tower_lr": "vision_lr",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # a float below 1 is a fraction of the run
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    # names of studies' own scripts (MedKLIP)
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "save": "output_dir",
    "alpha1": "position_weight",
    "alpha2": "semantic_weight",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "jit_mode_eval": None,
    "save_safetensors": None,
    "fp16_backend": None,
    "half_precision_backend": None,
    "fp16_opt_level": None,
    "use_ipex": None,
    "torchdynamo": None,
    "tpu_num_cores": None,
    "tpu_metrics_debug": None,
    "past_index": None,
    "mp_parameters": None,
    "ray_scope": None,
    "use_mps_device": None,
    "use_legacy_prediction_loop": None,
    "include_tokens_per_second": None,
    "push_to_hub_organization": None,
}
# What `--trains` of our first version is now.
TRAINS = {
    "projector": ["--train", "connector"],
    "projector+lora": ["--train", "connector,language", "--lora_rank", "128", "--lora_alpha", "256"],
    "projector+llm": ["--train", "connector,language"],
    "all": ["--train", "all"],
}
_said: set[str] = set()


def say(message: str) -> None:
    """One warning for the main process, once."""
    if message not in _said and int(os.environ.get("RANK", "0")) == 0:
        _said.add(message)
        logger.warning(message)


def _is_true(value: str | None) -> bool:
    return value is None or value.lower() in ("true", "1", "yes")


def modernise(argv: Sequence[str]) -> list[str]:
    """The command line with old option names replaced. A bare `--resume_from_checkpoint` means the last checkpoint."""
    words: list[str] = []
    pending = list(argv)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, behind = word[2:].partition("=")
        name, value = name.replace("-", "_"), behind if equals else None
        if not equals:
            value = pending[0] if pending and not pending[0].startswith("--") else None
        takes_next = not equals and value is not None
        if name == "resume_from_checkpoint" and value is None:
            words += ["--resume_from_checkpoint", "True"]
            continue
        replacement = _replace(name, value)
        if replacement is None:
            words.append(word)
            continue
        if takes_next:
            pending.pop(0)
        # what an old option stood for gives way to an option of its own, wherever that stands
        words = [*replacement, *words] if name == "trains" else [*words, *replacement]
    return words


def _replace(name: str, value: str | None) -> list[str] | None:
    """The words that stand for an old option; None where the option is not an old one."""
    if name == "trains" and value in TRAINS:
        say(f"--trains {value} is now {' '.join(TRAINS[value])}")
        return TRAINS[value]
    if name == "group_by_length":
        say("--group_by_length is now --train_sampling_strategy group_by_length")
        return ["--train_sampling_strategy", "group_by_length"] if _is_true(value) else []
    if name == "adafactor":
        say("--adafactor is now --optim adafactor")
        return ["--optim", "adafactor"] if _is_true(value) else []
    if name == "include_inputs_for_metrics":
        say("--include_inputs_for_metrics is now --include_for_metrics inputs")
        return ["--include_for_metrics", "inputs"] if _is_true(value) else []
    if name == "logging_dir":
        say("--logging_dir is now the environment variable TENSORBOARD_LOGGING_DIR; it is set for this run")
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(value)
        return []
    if name not in RENAMED:
        return None
    new = RENAMED[name]
    if new is None:
        say(f"--{name} is gone from transformers v5 and does nothing")
        return []
    say(f"--{name} is now --{new}")
    return [f"--{new}"] + ([value] if value is not None else [])
