"""A padded batch -> one row without padding, in which no sample sees another; and which families allow that.

Positions begin again at 0 with each sample. From that, and only where there is no attention mask and no cache,
transformers makes masks by which no sample sees another. Exact for the families of `PACKABLE` (tests compare each
sample's loss with that of the sample alone); others are refused by name. Gemma 3 is no such family: its sliding layers
let a sample see the one before it where there are images. Nor is Qwen3.5, whose linear attention carries a state on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_medvlm.families.chat.messages import token_wise
from hf_medvlm.labels import IGNORE_INDEX

ROTARY = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Their positions tell the place in the image, and are computed a sample."""
PACKABLE = (
    *ROTARY,
    "idefics3",
    "smolvlm",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "mistral3",
    "deepseek_vl",
    "gemma4",
)


def check_packable(model_type: str) -> None:
    """Raise `ValueError` for a family whose samples would see one another."""
    if model_type not in PACKABLE:
        raise ValueError(
            f"--packing: not for {model_type}, whose samples would not be kept apart in one row. Leave it out, or take "
            f"one of {', '.join(sorted(PACKABLE))}"
        )


def pack_rows(batch: Mapping[str, Tensor], rope_index: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """`input_ids`, `labels` and all else that is one entry a token as (1, T), with `position_ids`; no attention mask.

    Args:
        batch: padded on the right.
        rope_index: the model's `get_rope_index`, where positions tell the place in the image.

    The first token of a sample is never a target: it would be predicted from the last one of its neighbour.
    """
    masks = batch["attention_mask"].bool()
    names = token_wise(batch)
    # SmolVLM and Idefics3: pixels (B, tiles, ...) of several samples as those of one; empty tiles are left out by them
    stacked = "pixel_attention_mask" in batch
    packed = {
        name: value.flatten(0, 1).unsqueeze(0) if stacked else value
        for name, value in batch.items()
        if name not in names
    }
    for name in names:
        if name != "attention_mask":
            packed[name] = torch.cat([row[mask] for row, mask in zip(batch[name], masks, strict=True)]).unsqueeze(0)
    lengths = masks.sum(1).tolist()
    first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    packed["labels"][0, first] = IGNORE_INDEX
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)  # (1, T)
    packed["position_ids"] = positions
    if rope_index is not None:
        places = _places(batch, masks, rope_index)  # (3, 1, T)
        packed["position_ids"] = torch.cat((positions.unsqueeze(0), places))  # (4, 1, T): of the text, then t, h, w
    return packed


def _places(batch: Mapping[str, Tensor], masks: Tensor, rope_index: Callable[..., Any]) -> Tensor:
    grids = batch.get("image_grid_thw")
    kinds = batch["mm_token_type_ids"]
    used, places = 0, []
    for row, mask in enumerate(masks):
        ids, kind = batch["input_ids"][row][mask], kinds[row][mask]
        # an image is one run of tokens of kind 1
        starts = (kind == 1) & (torch.cat((kind.new_zeros(1), kind[:-1])) != 1)
        images = int(starts.sum())
        grid = grids[used : used + images] if grids is not None and images else None
        used += images
        if grid is None:
            places.append(torch.arange(len(ids)).expand(3, 1, -1))
        else:
            places.append(rope_index(ids.unsqueeze(0), mm_token_type_ids=kind.unsqueeze(0), image_grid_thw=grid)[0])
    return torch.cat(places, dim=-1)
