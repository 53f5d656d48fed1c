"""Vision and text backbones: any tower of transformers, from a config or a checkpoint, read in one way; and freezing.

Knows nothing of projections or losses.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_medvlm.models.loading import load_config, load_strictly
from hf_medvlm.models.packed_texts import read_packed

# What a published file has beside the tower: heads of its pretraining. They may be left over; nothing else may.
HEADS = ("*cls.*", "*classifier.*", "*pooler.*", "*lm_head.*", "*mask_token", "*lm_predictions.*", "*lm_head_bias")

# ------------------------------------------------------------------------------------------- freezing


def freeze(module: nn.Module, frozen: bool = True) -> None:
    """Freeze `module`, a part of any model, or thaw it. Frozen, it gets no gradient and stays in evaluation mode.

    `model.train()` does not change that, nor does loading weights into the model. Nothing of it is saved.
    """
    for name, parameter in module.named_parameters():
        # a mask token serves masked pre-training alone: it would never get a gradient
        parameter.requires_grad_(not frozen and not name.endswith("mask_token"))
    if frozen:
        module.train = partial(_stay_in_evaluation, module)  # a partial, so that a deep copy holds the copied module
        module.eval()
    else:
        vars(module).pop("train", None)


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


class KeepsFrozen:
    """Mix-in of a `PreTrainedModel` with parts that no loss reaches, or with batch norms.

    Batch-norm layers use, and do not change, their running statistics in training too: batch statistics would tie a
    study's embedding to its neighbours, and the same global batch would not give the same loss when it is split.
    """

    def apply_freezing(self) -> None:
        """Freeze what no loss of this configuration reaches; called after building and after loading."""

    def train(self, mode: bool = True) -> KeepsFrozen:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        # loading replaces the parameters, and with them what was frozen at building
        (loaded[0] if isinstance(loaded, tuple) else loaded).apply_freezing()
        return loaded


# ------------------------------------------------------------------------------------------- building


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with random weights, without the pooling head that a contrastive model does not use."""
    # the class itself: under ZeRO-3 `AutoModel.from_config` would shard the tower before the whole model is initialised
    tower = _tower_class(config)(config, **_without_pooler(config))
    freeze(tower, frozen=False)
    return tower


def load_tower(name: str, side: str) -> PreTrainedModel:
    """A pretrained backbone from a Hub id or folder; of a two-tower checkpoint (CLIP) the `side` "vision" or "text".

    Raises:
        ValueError: there is no such checkpoint, or its weights do not fit.
    """
    config = load_config(name)
    tower = load_strictly(_tower_class(config), name, ignorable=HEADS, **_without_pooler(config))
    if hasattr(config, f"{side}_config"):
        tower = getattr(tower, f"{side}_model")
    freeze(tower, frozen=False)
    return tower


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    takes = inspect.signature(_tower_class(config)).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def hidden_size(config: PreTrainedConfig) -> int:
    """Width of a backbone's features: `hidden_size`, or the last of a staged network's `hidden_sizes`."""
    return getattr(config, "hidden_size", None) or config.hidden_sizes[-1]


# ------------------------------------------------------------------------------------------- reading


@dataclass
class VisionFeatures:
    """What any vision tower saw: `pooled` (B, H), `patches` (B, P, H) row by row, `grid` (rows, columns) with P
    patches.
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]


def see(tower: nn.Module, pixel_values: Tensor) -> VisionFeatures:
    """Run a vision tower. Pooled is the tower's own pooling, else the class token, else the mean of the patches.

    Args:
        pixel_values: (B, 3, height, width), normalised.

    Raises:
        ValueError: the output's patches do not form a grid.
    """
    output = tower(pixel_values=pixel_values)
    hidden, pooled = output.last_hidden_state, output.get("pooler_output")
    if hidden.dim() == 4:  # convolutional: (B, H, rows, columns)
        grid, prefix, hidden = tuple(hidden.shape[2:]), 0, hidden.flatten(2).mT
    else:
        grid, prefix = patch_grid(hidden.shape[1], tuple(pixel_values.shape[2:]), tower.config)
    patches = hidden[:, prefix:]
    if pooled is None:
        pooled = hidden[:, 0] if prefix else patches.mean(1)
    return VisionFeatures(pooled.flatten(1), patches, grid)


def patch_grid(tokens: int, size: tuple[int, int], config: PreTrainedConfig) -> tuple[tuple[int, int], int]:
    """The patches' (rows, columns), and how many class and register tokens stand in front of them.

    Args:
        tokens: length of the tower's output sequence. size: (height, width) of the image in pixels.

    Raises:
        ValueError: no such grid gives that many tokens.
    """
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    stride = patch * 2 ** (len(config.depths) - 1) if hasattr(config, "depths") else patch  # staged towers merge by 2
    rows, columns = size[0] // stride, size[1] // stride
    prefix = tokens - rows * columns
    if not 0 <= prefix <= 1 + getattr(config, "num_register_tokens", 0):
        raise ValueError(
            f"the image tower ({config.model_type}) gives {tokens} tokens for {size[0]} x {size[1]} pixels, but its "
            f"patches of {stride} pixels make a grid of {rows} x {columns} = {rows * columns}; patches that form no "
            "grid cannot be dropped, aligned or drawn. Take a tower with one token a patch (ViT, CLIP, DINOv2, Swin)"
        )
    return (rows, columns), prefix


@dataclass
class TextFeatures:
    """What any text tower read: `pooled` (B, H) and `tokens` (B, T, H)."""

    pooled: Tensor
    tokens: Tensor


def read(tower: nn.Module, input_ids: Tensor, attention_mask: Tensor, pooling: str = "cls") -> TextFeatures:
    """Run a text tower.

    Args:
        input_ids, attention_mask: (B, T); what the mask hides changes nothing.
        pooling: "cls" for the first token, "mean" for the mean of the valid tokens; a tower with a trained pooling of
            its own (CLIP's end token) uses that for "cls".
    """
    tokens, pooled = read_packed(tower, input_ids, attention_mask), None
    if tokens is None:
        output = tower(input_ids=input_ids, attention_mask=attention_mask)
        tokens, pooled = output.last_hidden_state, output.get("pooler_output")
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * weights).sum(1) / weights.sum(1)
    elif pooled is None:
        pooled = tokens[:, 0]
    return TextFeatures(pooled, tokens)
