"""Maps over what a model sees -> maps over the whole image: the way back through resizing and cropping.

Knows image processors by their attributes alone: a crop from the middle after the shorter side was resized, margins
that make the image a square, or the whole image squeezed to one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


def to_image_size(
    similarity: Tensor,
    width: int,
    height: int,
    resize_size: int | None = None,
    crop_size: int | None = None,
    interpolation: str = "nearest",
) -> np.ndarray:
    """A map over the model's crop -> a map over the whole image, NaN where the model has not looked.

    Args:
        similarity: (h, w).
        width, height: of the original image, in pixels.
        resize_size, crop_size: of the image processor; without a crop the map is stretched over the whole image,
            without a resize the crop is taken to be of the original's pixels.
        interpolation: "nearest" or "bilinear" (without aligned corners).

    Returns:
        (height, width), float32.

    Raises:
        ValueError: the crop is larger than the image.
    """
    size = (height, width)
    if crop_size is not None:
        side = int(crop_size * min(size) / resize_size) if resize_size else crop_size
        if side > min(size):
            raise ValueError(f"a crop of {side} pixels is larger than the image of {width} x {height}")
        size = (side, side)
    grid = interpolate(
        similarity[None, None], size, mode=interpolation, align_corners=None if interpolation == "nearest" else False
    )[0, 0]
    across, down = width - size[1], height - size[0]
    margins = [across // 2, math.ceil(across / 2), down // 2, math.ceil(down / 2)]
    return pad(grid, margins, value=math.nan).numpy()


def crop_of(image_processor: Any) -> tuple[int | None, int | None]:
    """(shorter side after resizing, side of the crop from the middle) of an image processor; None where it has none."""
    if hasattr(image_processor, "resize_size"):
        return image_processor.resize_size, image_processor.crop_size
    size, crop = getattr(image_processor, "size", None) or {}, getattr(image_processor, "crop_size", None) or {}
    edge = size.get("shortest_edge") if hasattr(size, "get") else size["shortest_edge"]
    if edge is None or not getattr(image_processor, "do_center_crop", True) or not crop:
        return None, None
    return edge, min(crop["height"], crop["width"])


def over_image(grid: Tensor, size: tuple[int, int], image_processor: Any) -> np.ndarray:
    """A map (h, w) over what the model sees -> (height, width) float32 over an image of `size` (width, height).

    Bilinear; NaN where the crop has left the image out. What lies over the margins of an image that is padded to a
    square, as LLaVA's are, is cut off.
    """
    resize_size, crop_size = crop_of(image_processor)
    width, height = size
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        width = height = max(size)
    whole = to_image_size(grid.float().cpu(), width, height, resize_size, crop_size, "bilinear")
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    return whole[top : top + size[1], left : left + size[0]]


def thumbnail_map(
    grid: Tensor, size: tuple[int, int], image_processor: Any, cells: int = 32
) -> list[list[float | None]]:
    """`over_image` at no more than `cells` a side: what the pages show, five digits a cell, None outside the crop."""
    longest = max(size)
    small = tuple(max(1, round(side * cells / longest)) for side in size) if longest > cells else size
    whole = over_image(torch.as_tensor(grid), (small[0], small[1]), image_processor)
    return [[None if math.isnan(v) else round(v, 5) for v in row] for row in whole.tolist()]
