"""The numbers of an image processor, checked when it is loaded and before a picture meets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_medvlm.errors import clipped

LARGEST_SIDE = 16_384
LARGEST_GREY, SMALLEST_SPREAD = 65_536, 1e-6
"""What mean, standard deviation and factor may be: with more, or less, numbers run over in the first layers."""


def check_pixels(processor: Any, folder: str | Path) -> None:
    """Refuse an image processor whose numbers are none, before a picture meets them.

    Raises:
        ValueError: mean, standard deviation, factor or size; the message names the folder, the name and the value.
    """

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    def wrong(name: str, value: Any, wanted: str) -> ValueError:
        return ValueError(f"{folder}: {name} of its image processor must be {wanted}, found {clipped(value)}")

    for name in ("image_mean", "image_std"):
        value = getattr(processor, name, None)
        numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if value is not None and not (len(numbers) in (1, 3) and all(map(is_number, numbers))):
            raise wrong(name, value, "three numbers")
        if value is not None and max(map(abs, numbers)) > LARGEST_GREY:
            raise wrong(name, value, f"three numbers of at most {LARGEST_GREY:,}")
        if name == "image_std" and value is not None and min(numbers) < SMALLEST_SPREAD:
            raise wrong(name, value, "three numbers above 0")
    factor = getattr(processor, "rescale_factor", None)
    if factor is not None and not (is_number(factor) and 0 < factor <= LARGEST_GREY):
        raise wrong("rescale_factor", factor, f"a number above 0, of at most {LARGEST_GREY:,}")
    for name in ("size", "crop_size"):
        value = getattr(processor, name, None)
        for key in ("height", "width", "shortest_edge", "longest_edge"):
            side = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
            most = LARGEST_SIDE if key in ("height", "width") else LARGEST_SIDE**2  # some count pixels there
            if side is not None and not (type(side) is int and 1 <= side <= most):
                raise wrong(f"{name}.{key}", side, "a whole number of pixels")
