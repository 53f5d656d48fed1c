"""Where a chat model looks for each word: its attention to the image's tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from hf_medvlm.families.chat.model import LlavaReporter

MOST_BYTES = 2 * 2**30


def word_attention(model: LlavaReporter, prompts: Mapping[str, Tensor], row: int, ids: Tensor) -> Tensor:
    """`evaluation.attention.WordAttention` of a LLaVA.

    Raises:
        ValueError: the row shows another number of images than one.
    """
    is_image = prompts["input_ids"] == model.config.image_token_id
    images = is_image.sum(1) // model.image_tokens  # (B,)
    if images[row] != 1:
        raise ValueError(f"the prompt shows {int(images[row])} images; where it looked is told of one image")
    place = int(images[:row].sum())
    prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]  # without the padding on the left
    whole = torch.cat((prompt, ids))[None]
    language = model.model.language_model
    _check_size(language, whole.shape[1])
    with eager_attention(language):
        embeds = model.embed(whole, prompts["pixel_values"][place : place + 1])
        attention = language(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
    mean = _mean(attention)
    columns = (whole[0] == model.config.image_token_id).nonzero().flatten()
    if model.config.vision_feature_select_strategy == "full":
        vision: Any = model.config.vision_config
        columns = columns[model.image_tokens - (vision.image_size // vision.patch_size) ** 2 :]
    asked = len(prompt) - 1
    return mean[asked : asked + len(ids)][:, columns]


def stock_word_attention(model: PreTrainedModel, prompts: Mapping[str, Tensor], row: int, ids: Tensor) -> Tensor:
    """`evaluation.attention.WordAttention` of any chat model of transformers that reads one picture as one grid.

    Args:
        prompts: of one study, so that `row` is 0.

    Raises:
        ValueError: several images, a picture in tiles, or image tokens that are no grid: what a token stands for is
            then not known.
    """
    length = prompts["input_ids"].shape[1]
    config: Any = model.config
    token: Any = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", -1)
    columns = torch.eq(prompts["input_ids"][0], token).nonzero().flatten()
    height, width = _grid(config, prompts, len(columns))
    whole = {}
    for name, value in prompts.items():
        if name == "input_ids":
            value = torch.cat((value, ids[None]), 1)
        elif value.dim() == 2 and value.shape == (1, length) and not value.is_floating_point():
            more = torch.full((1, len(ids)), int(name == "attention_mask"), dtype=value.dtype, device=value.device)
            value = torch.cat((value, more), 1)  # words are no image, and are looked at
        whole[name] = value
    language: Any = getattr(model, "language_model", None) or getattr(model.base_model, "language_model", None) or model
    _check_size(language, length + len(ids))
    with eager_attention(language):
        attention = model(**whole, output_attentions=True, use_cache=False).attentions
    looked = _mean(attention)[length - 1 : length - 1 + len(ids)][:, columns]
    if height == width:
        return looked
    side = (max(height, width),) * 2  # the same places of the image, as a square
    return interpolate(looked.float().view(-1, 1, height, width), side, mode="bilinear").flatten(1)


def _grid(config: Any, prompts: Mapping[str, Tensor], tokens: int) -> tuple[int, int]:
    """Rows and columns of the image's tokens."""
    grids = prompts.get("image_grid_thw")
    if grids is not None:
        merge = config.vision_config.spatial_merge_size
        height, width = (int(side) // merge for side in grids[0, 1:])
        whole = len(grids) == 1 and int(grids[0, 0]) == 1
    else:
        height = width = math.isqrt(tokens)
        pixels = prompts.get("pixel_values")
        whole = pixels is not None and math.prod(pixels.shape[:-3]) == 1
    if not whole or not tokens or height * width != tokens:
        raise ValueError(
            f"where it looked is told of one image that is read as one grid; here {tokens} image tokens stand for "
            "several images, for tiles of one, or for none"
        )
    return height, width


def _check_size(language: PreTrainedModel, tokens: int) -> None:
    """
    Raises:
        ValueError: the attention of all layers and heads would take more than 2 GiB.
    """
    config: Any = language.config.get_text_config()
    size = config.num_hidden_layers * config.num_attention_heads * tokens**2 * language.dtype.itemsize
    if size > MOST_BYTES:
        raise ValueError(f"the attention of {tokens} tokens takes {size / 2**30:.1f} GiB; where it looked is not told")


def _mean(attention: Sequence[Tensor | None]) -> Tensor:
    """(T, T), mean over heads and those layers that have attention, of the first row."""
    if attention is None or not (layers := [layer[0].mean(0) for layer in attention if layer is not None]):
        raise ValueError("the model's layers do not tell their attention; where it looked is not known")
    return torch.stack(layers).mean(0)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that gives its weights away, in place of a faster one."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
