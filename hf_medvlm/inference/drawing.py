"""A map over a radiograph: as a picture, and as its peak and box in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

STRENGTH = 0.55  # of the map's largest value over the radiograph
HALF = 0.5


def peak_and_box(grid: np.ndarray) -> dict[str, Any]:
    """Where a map (H, W) is largest, and the box of the region around it.

    Returns:
        `peak`: {x, y, value} in pixels. `box`: [left, top, width, height] of the connected region that holds the peak
        and lies above half way from the map's smallest to its largest value. `range`: [smallest, largest]. NaN, where
        the model has not looked, is part of no region.

    Raises:
        ValueError: the map is NaN throughout.
    """
    from scipy.ndimage import label

    seen = np.isfinite(grid)
    if not seen.any():
        raise ValueError("the map holds no number; the model saw nothing of this image")
    low, high = float(grid[seen].min()), float(grid[seen].max())
    y, x = np.unravel_index(np.nanargmax(grid), grid.shape)
    inside = np.where(seen, grid, -np.inf) >= low + HALF * (high - low)
    region = label(inside)[0]
    rows, columns = np.nonzero(region == region[y, x])
    left, top = int(columns.min()), int(rows.min())
    return {
        "peak": {"x": int(x), "y": int(y), "value": float(grid[y, x])},
        "box": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
        "range": [low, high],
    }


def heat(grid: np.ndarray) -> Image.Image:
    """A map (H, W), scaled to its own range, as an RGBA picture: inferno's colours, the more opaque the larger."""
    from matplotlib import colormaps

    seen = np.isfinite(grid)
    low, high = (float(grid[seen].min()), float(grid[seen].max())) if seen.any() else (0.0, 0.0)
    values = np.nan_to_num((grid - low) / max(high - low, 1e-12), nan=0.0).clip(0, 1)
    colours = (colormaps["inferno"](values) * 255).round().astype(np.uint8)
    colours[..., 3] = (values * 255).round().astype(np.uint8)
    return Image.fromarray(colours, "RGBA")


def over_radiograph(picture: Image.Image, grid: np.ndarray, located: dict[str, Any] | None = None) -> Image.Image:
    """The map over the radiograph, with its box and its peak where `found` of `peak_and_box` is given; mode "RGB".

    Args:
        picture: mode "L", of the map's own size. grid: (H, W).
    """
    shown = picture.convert("RGBA")
    layer = heat(grid)
    layer.putalpha(layer.getchannel("A").point(lambda alpha: int(alpha * STRENGTH)))
    shown.alpha_composite(layer)
    if located:
        draw, width = ImageDraw.Draw(shown), max(1, round(max(picture.size) / 300))
        left, top, wide, high = located["box"]
        draw.rectangle((left, top, left + wide - 1, top + high - 1), outline=(80, 220, 255, 255), width=width)
        x, y, arm = located["peak"]["x"], located["peak"]["y"], 6 * width
        draw.line((x - arm, y, x + arm, y), fill=(80, 220, 255, 255), width=width)
        draw.line((x, y - arm, x, y + arm), fill=(80, 220, 255, 255), width=width)
    return shown.convert("RGB")
