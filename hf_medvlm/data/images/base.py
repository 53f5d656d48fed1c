"""What all readers share: the limit on the size, the two ways a file is refused, and the way to 8 bits."""

from __future__ import annotations

import numpy as np

MAX_PIXELS = 150_000_000
"""Larger pictures are refused from their header alone; the largest radiographs have some 20 million pixels."""


class Refused(ValueError):
    """The file is understood, and is not read for the reason that the message gives."""


def check_size(width: int, height: int) -> None:
    """Raise `Refused` unless the picture has between 1 and `MAX_PIXELS` pixels."""
    if not 0 < width * height <= MAX_PIXELS:
        raise Refused(f"{width} x {height} pixels; between 1 and {MAX_PIXELS:,} are read, so make a smaller copy")


def largest(value: float, bits: int = 8) -> int:
    """The largest number of the fewest bits, `bits` or more, that hold `value`: 255, 511, ... 4095, ... 65535."""
    return 2 ** max(bits, int(value).bit_length()) - 1


def to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` to 0 and `high` to 255; what lies outside is black or white. Where the two are equal, all is black."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    exact: np.ndarray = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled = (exact - float(low)) * (255 / (high - low))  # Python's floats leave the type of the array as it is
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def luminance(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """ITU-R 601 brightness of three channels of any depth, as Pillow weighs them; float64."""
    return 0.299 * red + 0.587 * green + 0.114 * blue
