"""Running towers: any vision tower gives pooled features and patches, any text tower pooled features and tokens."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_medvlm.models.packed_texts import read_packed
from hf_medvlm.models.towers import OWN_POOLING, PADDED_TEXT, is_causal

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""What an image processor may give a vision tower: the last two go with SigLIP 2's patches of any aspect ratio."""


@dataclass
class VisionFeatures:
    """What any vision tower saw: `pooled` (B, H), `patches` (B, P, H) row by row, `grid` (rows, columns) with P
    patches; the grid is (1, P) where each image has another one (SigLIP 2, NaFlex).
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]


def encode_image(tower: PreTrainedModel, pixel_values: Tensor, **patches_of: Tensor | None) -> VisionFeatures:
    """Run a vision tower. Pooled is the tower's own pooling, else the class token, else the mean of the patches.

    Args:
        pixel_values: (B, 3, height, width), normalised; of SigLIP 2 (B, P, 3 * side * side), its patches.
        patches_of: SigLIP 2's `pixel_attention_mask` (B, P) and `spatial_shapes` (B, 2).

    Raises:
        ValueError: the output's patches do not form a grid.
    """
    given: dict[str, Any] = {name: value for name, value in patches_of.items() if value is not None}
    trained_at = getattr(tower.config, "image_size", None)
    sides = (trained_at, trained_at) if isinstance(trained_at, int) else trained_at
    if pixel_values.dim() == 4 and sides and tuple(pixel_values.shape[2:]) != tuple(sides):
        if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
            given["interpolate_pos_encoding"] = True
    output = tower(pixel_values=pixel_values, **given)
    hidden, pooled = output.last_hidden_state, output.get("pooler_output")
    if hidden.dim() == 4:  # convolutional: (B, H, rows, columns)
        rows, columns = hidden.shape[2:]
        grid, prefix, hidden = (rows, columns), 0, hidden.flatten(2).mT
    elif "spatial_shapes" in given:
        grid, prefix = (1, hidden.shape[1]), 0
    else:
        height, width = pixel_values.shape[2:]
        grid, prefix = patch_grid(hidden.shape[1], (height, width), tower.config)
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


def encode_text(
    tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, pooling: str = "cls"
) -> TextFeatures:
    """Run a text tower.

    Args:
        input_ids, attention_mask: (B, T); what the mask hides changes nothing. SigLIP's towers, which were trained so,
            see each text padded to the full length of their positions.
        pooling: "cls" for the first token, "mean" for the mean of the valid tokens, "last" for the last valid token,
            "pooler" for the tower's own (CLIP's end token, SigLIP's head), which is also the "cls" of those two.

    Raises:
        ValueError: "pooler" is asked of a tower without one.
    """
    kind = tower.config.model_type
    packed, pooled = read_packed(tower, input_ids, attention_mask), None
    if packed is not None:
        tokens = packed
    elif kind in PADDED_TEXT:
        tokens, pooled = _encode_padded(tower, input_ids, attention_mask)
    else:
        options = {"use_cache": False} if is_causal(tower.config) else {}
        output = tower(input_ids=input_ids, attention_mask=attention_mask, **options)
        tokens, pooled = output.last_hidden_state, output.get("pooler_output")
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * weights).sum(1) / weights.sum(1)
    elif pooling == "last":
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * places).argmax(1)
        pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
    elif pooling == "pooler" and pooled is None:
        raise ValueError(f"the text tower ({kind}) has no pooling of its own; take --text_pooling cls, mean or last")
    elif kind not in OWN_POOLING and pooling == "cls":
        pooled = tokens[:, 0]
    assert pooled is not None, kind
    return TextFeatures(pooled, tokens)


def _encode_padded(tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, H) and pooled features of a tower that was trained on padded texts and no mask."""
    config, length = tower.config, input_ids.shape[1]
    full = input_ids.new_full((len(input_ids), max(config.max_position_embeddings, length)), config.pad_token_id)
    full[:, :length] = input_ids.masked_fill(attention_mask == 0, config.pad_token_id)
    output = tower(input_ids=full)
    return output.last_hidden_state[:, :length], output.pooler_output
