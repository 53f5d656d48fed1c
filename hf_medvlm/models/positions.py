"""Fixed sine positions of a grid of patches: DETR's and MAE's."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def detr_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """DETR's fixed sine positions of a grid, (height * width, dim), row by row; float32.

    Half of `dim` tells the row, half the column. Coordinates run from 1 to n, over n + 1e-6, times 2 pi. A function,
    and no buffer: `from_pretrained` leaves garbage in buffers that are not in the checkpoint, and the published one
        has none.
    """
    half = dim // 2
    pairs = torch.arange(half, device=device) // 2
    wavelengths = 10000 ** (2 * pairs / half)

    def encode(n: int) -> Tensor:  # (n, half)
        places = torch.arange(1, n + 1, device=device) / (n + 1e-6) * (2 * math.pi)
        angles = places[:, None] / wavelengths
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def mae_positions(grid: int, width: int) -> Tensor:
    """Position embeddings (grid * grid, width) of a square grid, row by row: sines and cosines of both coordinates.

    A tiny vision tower that starts from these finds out where it looks in a fraction of the steps. The two-dimensional
    form of Vaswani et al. 2017 (section 3.5), as in He et al. 2022, "MAE".
    """
    rates = 100.0 ** (-torch.arange(width // 4) / (width // 4))  # wavelengths up to some 600 patches
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
