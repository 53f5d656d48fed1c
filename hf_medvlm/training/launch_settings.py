"""What DeepSpeed's file and the objects for FSDP and accelerate may hold, checked before anything is loaded.

The libraries look at most of them only after minutes of loading, and answer with an error from inside.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from hf_medvlm.checked import (
    Kind,
    between,
    count,
    either,
    flag,
    length,
    many,
    name,
    named,
    number,
    plain,
    record,
    words,
)
from hf_medvlm.errors import clipped


def _auto(kind: Kind) -> Kind:
    """A value that "auto" may stand for."""
    return lambda value, place: value if value == "auto" and isinstance(value, str) else kind(value, place)


def _maybe(kind: Kind) -> Kind:
    """A value that null may stand for."""
    return lambda value, place: None if value is None else kind(value, place)


_BATCH = _auto(length)
DEEPSPEED = record(
    train_batch_size=_BATCH,
    train_micro_batch_size_per_gpu=_BATCH,
    gradient_accumulation_steps=_BATCH,
    gradient_clipping=_auto(between(0, 1e30)),
    steps_per_print=_auto(number),
    zero_optimization=_maybe(record()),
    zero_allow_untested_optimizer=_auto(flag),
    zero_force_ds_cpu_optimizer=_auto(flag),
    wall_clock_breakdown=_auto(flag),
    communication_data_type=_maybe(words),
    seq_parallel_communication_data_type=_maybe(words),
    tensor_parallel=_maybe(record(autotp_size=_auto(count))),
    optimizer=_maybe(
        record(
            "type",
            type=name,
            params=_maybe(
                record(
                    lr=_auto(between(0, 1e30)),
                    eps=_auto(between(0, 1)),
                    weight_decay=_auto(number),
                    betas=_auto(many(between(0, 1), 2)),
                )
            ),
        )
    ),
    scheduler=_maybe(record("type", type=name, params=_maybe(named(plain)))),
    **dict.fromkeys(
        ("fp16", "bf16", "bfloat16", "amp", "activation_checkpointing", "flops_profiler", "tensorboard", "aio"),
        _maybe(record(enabled=_auto(flag))),
    ),
)
DEEPSPEEDS_OWN = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "fp16": ("deepspeed.runtime.precision_config", "DeepSpeedFP16Config"),
    "bf16": ("deepspeed.runtime.precision_config", "DeepSpeedBF16Config"),
}
"""Part of the file -> the class in which DeepSpeed says what it may hold."""

_FLAG = either(words, flag)  # "true" is read as true
OBJECTS: Mapping[str, Kind] = {
    "accelerator_config": record(
        gradient_accumulation_kwargs=_maybe(
            record(num_steps=length, adjust_scheduler=flag, sync_with_dataloader=flag, sync_each_batch=flag)
        ),
        **dict.fromkeys(
            (
                *("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking"),
                "use_configured_state",
            ),
            flag,
        ),
    ),
    "fsdp_config": record(
        min_num_params=count,
        version=count,
        transformer_layer_cls_to_wrap=either(many(name), words),
        **dict.fromkeys(("auto_wrap_policy", "state_dict_type", "backward_prefetch"), words),
        **dict.fromkeys(
            (
                *("cpu_offload", "cpu_ram_efficient_loading", "activation_checkpointing", "reshard_after_forward"),
                *("forward_prefetch", "use_orig_params", "sync_module_states", "limit_all_gathers"),
            ),
            _FLAG,
        ),
        **dict.fromkeys(("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"), flag),
    ),
    "gradient_checkpointing_kwargs": record(
        **dict.fromkeys(("use_reentrant", "preserve_rng_state", "debug", "early_stop"), flag), determinism_check=words
    ),
}
"""Option that is a JSON object -> what it may hold."""
NO_OTHERS = {
    "gradient_checkpointing_kwargs": ("use_reentrant", "preserve_rng_state", "debug", "early_stop", "determinism_check")
}
"""Those whose other names would end the first step."""


def check_object(option: str, value: Mapping[str, Any]) -> None:
    """Refuse a value that its name cannot have in an option that is a JSON object.

    Raises:
        ValueError: with the option, the name and what was found.
    """
    if option not in OBJECTS:
        return
    OBJECTS[option]({key.removeprefix("fsdp_"): part for key, part in value.items()}, f"--{option}:")
    known = NO_OTHERS.get(option, value)
    if unknown := [key for key in value if key not in known]:
        raise ValueError(f"--{option}: {unknown[0]!r:.100} is none of {', '.join(known)}")


def check_deepspeed_values(settings: Mapping[str, Any], place: str) -> None:
    """Refuse a value that its name cannot have in DeepSpeed's file; DeepSpeed is asked where it is installed.

    Raises:
        ValueError: with the file, the name and what was found.
    """
    DEEPSPEED(settings, f"{place}:")
    for part, (module, kind) in DEEPSPEEDS_OWN.items():
        given = settings.get(part)
        if not given:
            continue
        try:
            own_class = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError):  # not installed, or a version that keeps it elsewhere
            return
        from pydantic import ValidationError

        try:
            own_class(**_without_auto(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(repr(each) for each in (part, *first["loc"]))
            raise ValueError(f"{place}: {where:.200}: {first['msg']:.200}, found {clipped(first['input'])}") from error
        except Exception as error:  # of a validator of its own
            raise ValueError(f"{place}: {part!r} cannot be used ({clipped(str(error))})") from error


def _without_auto(value: Mapping[str, Any]) -> dict[str, Any]:
    parts = {key: _without_auto(part) if isinstance(part, Mapping) else part for key, part in value.items()}
    return {key: part for key, part in parts.items() if not (isinstance(part, str) and part == "auto")}
