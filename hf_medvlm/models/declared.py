"""`check_declared`: a config of ours holds what its class declares; transformers looks at its own classes alone."""

from __future__ import annotations

import math
import typing
from functools import cache
from types import NoneType, UnionType
from typing import Any

from transformers import PreTrainedConfig

LEAST = {
    "_size": 1,
    "_dim": 1,
    "_heads": 1,
    "_layers": 1,
    "d_model": 1,
    "num_": 0,
    "_steps": 0,
    "_weight": 0,
    "_range": 0,
}
"""The least number by the end, or the beginning, of a field's name."""


def check_declared(config: Any) -> None:
    """Check the fields that our own class, or one it inherits from, declares.

    Raises:
        ValueError: a value of another type, a number that is none or too small, a dropout of 1 or more; with the field.
    """
    for kind in type(config).__mro__:
        if not kind.__module__.startswith("hf_medvlm"):
            continue
        for name, hint in _hints(kind).items():
            value = getattr(config, name)
            if not _fits(value, hint):
                raise ValueError(f"{name} must be {_words(hint)}, got {value!r:.200}")
            if name.endswith("_config") and not isinstance(value, (dict, PreTrainedConfig, NoneType)):
                raise ValueError(f"{name} must be a config or its JSON object, got {value!r:.200}")
            _check_number(name, value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields that this class itself declares."""
    declared = {"__annotations__": kind.__dict__.get("__annotations__", {}), "__module__": kind.__module__}
    return typing.get_type_hints(type(kind.__name__, (), declared))


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    least = next((n for part, n in LEAST.items() if name.endswith(part) or name.startswith(part)), -math.inf)
    if not (math.isfinite(value) and value >= least):
        raise ValueError(
            f"{name} must be a finite number{f' of at least {least}' if least >= 0 else ''}, got {value!r:.100}"
        )
    if ("dropout" in name or "drop_path" in name) and not 0 <= value < 1:
        raise ValueError(f"{name} must be a share from 0 to below 1, got {value!r:.100}")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or typing.get_origin(hint) is typing.ClassVar:
        return True
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(part, parts[0]) for part in value)
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, (int, float) if hint is float else int)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
