"""Batches of 8-bit pictures -> pixel values, on the device that holds them: vary, then normalise, one channel to the
last moment.

The arithmetic is that of `hf_medvlm.data.images.augment`; noise is a hash of seed and place, so that no number depends
on the device, the batch or the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_medvlm.data.images.augment import NOISE_SCALE, Variation

PIXELS, VARIATION, TABLE, PRESENT = "pixel_values", "_variation", "_table", "_present"


def finish_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with every unfinished `*pixel_values` varied and normalised, and without what that took.

    Unfinished are uint8 pictures (B, 1, H, W) with, beside them on the same device, `<name>_table` (3, 256), in
    training `<name>_variation` (B, 10), and `<name>_present` (B,) where rows without a picture are to be 0.
    """
    finished = dict(batch)
    for name in [name for name in batch if name.endswith(PIXELS) and f"{name}{TABLE}" in batch]:
        table = finished.pop(f"{name}{TABLE}")
        grey = finished.pop(name)
        variation = finished.pop(f"{name}{VARIATION}", None)
        present = finished.pop(f"{name}{PRESENT}", None)
        finished[name] = normalise(grey if variation is None else vary(grey, variation), table)
        if present is not None:
            finished[name] *= present[:, None, None, None]
    return finished


def normalise(grey: Tensor, table: Tensor) -> Tensor:
    """uint8 (B, 1, H, W) -> float (B, 3, H, W): what `table` (3, 256) says of each grey value in each channel."""
    out = torch.empty(len(grey), 3, *grey.shape[2:], dtype=table.dtype, device=grey.device)
    places = grey[:, 0].to(torch.int32)
    for channel in range(3):
        out[:, channel] = table[channel][places]
    return out


def vary(grey: Tensor, variation: Tensor) -> Tensor:
    """Apply a `Variation` to each picture, as `Variation.apply` does to one.

    Args:
        grey: uint8 (B, 1, H + 2 m, W + 2 m): pictures with a margin of m pixels.
        variation: float64 (B, 10): the fields of `Variation` and, last, m.

    Returns:
        uint8 (B, 1, H, W).
    """
    angle, scale, right, down, gamma, contrast, brightness, noise, seed, margins = variation.unbind(1)
    margin, (count, _, rows, columns) = int(margins[0]), grey.shape
    height, width = rows - 2 * margin, columns - 2 * margin
    # from output pixels, counted from the centre, to input pixels, and those to grid_sample's -1 ... 1
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x0 = sin * down * height - cos * right * width
    y0 = -sin * right * width - cos * down * height
    cos, sin, x0, y0 = (part.float()[:, None, None] for part in (cos, sin, x0, y0))
    x = torch.arange(width, device=grey.device)[None, None] + (0.5 - width / 2)
    y = torch.arange(height, device=grey.device)[None, :, None] + (0.5 - height / 2)
    across = (cos * x - sin * y + x0) * (2 / columns)
    along = (sin * x + cos * y + y0) * (2 / rows)
    grid = torch.stack((across, along), dim=-1)
    moved = F.grid_sample(grey.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    places = moved.round_().clamp_(0, 255).long().view(count, -1)
    levels = torch.linspace(0, 1, 256, dtype=torch.float64, device=grey.device)[None] ** gamma[:, None]
    curve = 255 * (contrast[:, None] * (levels - 0.5) + 0.5 + brightness[:, None])
    varied = curve.float().gather(1, places)
    varied += noise.float()[:, None] * _white_noise(height * width, seed.long())
    return varied.round_().clamp_(0, 255).to(torch.uint8).view(count, 1, height, width)


def _white_noise(count: int, seeds: Tensor) -> Tensor:
    """(B, count): `white_noise` of each seed. In int64, whose products wrap as those of unsigned numbers do."""
    x = torch.arange(count, device=seeds.device)[None] * 0x9E3779B1 + seeds[:, None]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x &= 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    x &= 0xFFFFFFFF
    pairs = (x & 0x00FF00FF) + ((x >> 8) & 0x00FF00FF)
    return (((pairs + (pairs >> 16)) & 0xFFFF) - 510).float() * (1 / NOISE_SCALE)


def as_tensor(variations: list[Variation], margin: int) -> Tensor:
    """float64 (B, 10): the fields, then the margin."""
    return torch.tensor([[*variation, margin] for variation in variations], dtype=torch.float64)
