"""A picture is encoded once for all texts of its study, in writing and in learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hf_medvlm.training.parts import VISION_NAMES, first_named


@contextmanager
def encode_once(model: nn.Module, pictures: Tensor) -> Iterator[None]:
    """Inside, the vision tower of `model` runs on one row of each picture, and the others get its output.

    Outputs and gradients are those of the whole batch. A model may be wrapped (peft, DDP, DeepSpeed); one whose tower
    is not known by its name encodes every row.

    Args:
        pictures: (R,), the number of the picture that each row of the batch shows.
    """
    name = first_named(model, VISION_NAMES)
    distinct, place = pictures.unique(return_inverse=True)
    if name is None or len(distinct) == len(pictures):
        yield
        return
    tower = model.get_submodule(name)
    rows = torch.arange(len(pictures), device=pictures.device)
    first = rows.new_full((len(distinct),), len(rows)).scatter_reduce(0, place, rows, "amin")

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return tuple(map(single, args)), {key: single(value) for key, value in kwargs.items()}

    def single(value: Any) -> Any:
        return value[first] if isinstance(value, Tensor) and value.dim() else value

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _taken(output, place)

    hooks = (tower.register_forward_pre_hook(before, with_kwargs=True), tower.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _taken(output: Any, place: Tensor) -> Any:
    if isinstance(output, Tensor):
        return output[place]
    if isinstance(output, ModelOutput):
        return type(output)(**{key: _taken(value, place) for key, value in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(_taken(value, place) for value in output)
    return output
