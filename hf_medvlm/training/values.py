"""Which values the options of the recipes can have, checked when they are parsed and before anything is loaded."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_medvlm.data.fields import section_alternatives
from hf_medvlm.data.files import load_json, read_json
from hf_medvlm.errors import clipped
from hf_medvlm.training.launch_settings import check_object

_MANY = 2**31 - 1
_BETWEEN: Mapping[tuple[float, float], str] = {
    (1, _MANY): """per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps save_total_limit
        early_stopping_patience eval_accumulation_steps train_studies eval_studies synthetic_studies lora_alpha
        max_length model_max_length shard_size dataloader_prefetch_factor torch_empty_cache_steps position_samples
        depth projection_size ddp_timeout""",
    (0, _MANY): "data_seed anneal_steps gumbel_steps alignment_warmup probe_studies",
    (0, 2**32 - 1): "seed",  # numpy's
    (0, 1024): "dataloader_num_workers",
    (0, 4096): "lora_rank",
    (1, 256): "num_beams",
    (1, 65536): "max_new_tokens",
    (16, 4096): "image_size synthetic_size",
    (0, math.inf): """learning_rate vision_lr connector_lr weight_decay max_grad_norm eval_delay warmup_steps
        neftune_noise_alpha local_weight alignment_weight masked_weight sparsity_weight consistency_weight filip_weight
        probe_weight evidence_weight position_weight semantic_weight global_weight progression_weight
        findings_weight""",
    (
        math.nextafter(0, 1),
        math.inf,
    ): "temperature position_temperature adam_epsilon logging_steps eval_steps save_steps",
    (0, 1): "sentence_share sparsity_target",
    (0, math.nextafter(1, 0)): "lora_dropout label_smoothing_factor adam_beta1 adam_beta2",
}
BOUNDS = {name: bounds for bounds, names in _BETWEEN.items() for name in names.split()}
"""Option -> (least, most)."""
STEPS = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")
"""From 1 on a number of steps, below a share of the run."""
CHOICES: Mapping[str, Iterable[str]] = {
    "eval_strategy": [each.value for each in IntervalStrategy],
    "logging_strategy": [each.value for each in IntervalStrategy],
    "save_strategy": [each.value for each in SaveStrategy],
    "lr_scheduler_type": [each.value for each in SchedulerType],
    "optim": [each.value for each in OptimizerNames],
    "loss": ("info_nce", "sigmoid"),
    "vision_projection": ("linear", "mlp"),
    "text_projection": ("linear", "mlp"),
    "text_pooling": ("cls", "mean", "last", "pooler"),
    "local_loss": ("gloria", "mgca", "filip"),
}
OBJECTS = ("accelerator_config", "fsdp_config", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
"""Options that are a JSON object, written out or in a file."""


def check_values(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse what no run could use.

    Args:
        values: option -> value; None is not looked at.
        types: option -> its annotation.

    Raises:
        ValueError: a value outside its bounds, NaN or infinity, a name that is none; the message names the option.
    """
    for name, value in values.items():
        if value is None:
            continue
        given = f"--{name} {clipped(str(getattr(value, 'value', value)))}"
        if _is_number(types.get(name)):
            _check_number(name, value, given)
        elif name in CHOICES and getattr(value, "value", value) not in CHOICES[name]:
            raise ValueError(f"{given}: there are {', '.join(CHOICES[name])}")
    if isinstance(values.get("sections"), str):
        try:
            section_alternatives(values["sections"])
        except ValueError as error:
            raise ValueError(f"--sections {clipped(values['sections'])}: {error}") from error
    for name in OBJECTS:
        _check_object(name, values.get(name))
    if "max_steps" in values:
        _check_length(values)
        _check_schedule(values)


def _is_number(annotation: Any) -> bool:
    kinds = {annotation, *typing.get_args(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def _check_number(name: str, value: Any, given: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{given}: a number is needed")
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    if not math.isfinite(value) or not low <= value <= high:
        whole = isinstance(low, int) and isinstance(high, int) and high > 1
        least = "more than 0" if 0 < low < 1e-300 else f"at least {low:,}"
        most = "" if high in (math.inf, _MANY) else " and below 1" if 0.9 < high < 1 else f" and at most {high:,}"
        bounds = "" if low == -math.inf else f" of {least}{most}"
        raise ValueError(f"{given}: a {'whole' if whole else 'finite'} number{bounds} is needed")
    if name in STEPS and value >= 1 and value != int(value):
        raise ValueError(f"{given}: a whole number of steps is needed, or a share of the run below 1")


def _check_object(name: str, value: Any) -> None:
    if value is None:
        return
    try:
        if isinstance(value, dict):
            read = value
        elif isinstance(value, str) and value.lstrip().startswith("{"):
            read = read_json(value, f"--{name}")
        else:
            read = load_json(str(value), dict)
    except ValueError as error:
        raise ValueError(
            f"--{name} {clipped(value)}: a JSON object is needed, or a file that holds one ({error})"
        ) from error
    check_object(name, read)


def _check_length(values: Mapping[str, Any]) -> None:
    steps, epochs = values["max_steps"], values.get("num_train_epochs")
    if steps != -1 and steps < 1:
        raise ValueError(f"--max_steps {clipped(steps)}: at least 1 is needed; -1 leaves it to --num_train_epochs")
    if steps == -1 and epochs is not None and epochs <= 0:
        raise ValueError(
            f"--num_train_epochs {clipped(epochs)}: more than 0 is needed; --evaluate_only scores without training"
        )
    if values.get("early_stopping_patience") and _name(values.get("eval_strategy")) == "no":
        raise ValueError("--early_stopping_patience needs evaluations on the way: --eval_strategy steps or epoch")


def _check_schedule(values: Mapping[str, Any]) -> None:
    """Make the schedule for an optimizer of one number: some want `--lr_scheduler_kwargs` of their own."""
    import json

    import torch
    from transformers import get_scheduler

    name, more = _name(values.get("lr_scheduler_type")), values.get("lr_scheduler_kwargs")
    if name is None:
        return
    try:
        more = json.loads(more) if isinstance(more, str) else more
    except ValueError as error:
        raise ValueError(f"--lr_scheduler_kwargs {clipped(more)}: not JSON: {error}") from error
    if more is not None and not isinstance(more, dict):
        raise ValueError(f"--lr_scheduler_kwargs {clipped(more)}: a JSON object is needed")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=more or {})
    except Exception as error:  # whatever a schedule makes of options that it does not know
        given = f"--lr_scheduler_type {name}" + (f" --lr_scheduler_kwargs {clipped(json.dumps(more))}" if more else "")
        raise ValueError(f"{given}: {clipped(str(error))}; see --lr_scheduler_kwargs") from error


def _name(value: Any) -> Any:
    return getattr(value, "value", value)
