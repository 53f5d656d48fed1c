"""The augmentation that a radiograph can bear: never mirrored, since reports name left and right."""

from __future__ import annotations

import numpy as np
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A slightly different exposure of the same patient: pose, brightness, contrast, gamma, noise; "L", the same size.

    Never mirrored, since reports name left and right, and the heart lies on the left. All randomness comes from `rng`.
    """
    pixels = np.asarray(image.transform(image.size, Image.Transform.AFFINE, pose(image.size, rng), BILINEAR))
    gamma, contrast, brightness = rng.uniform((0.8, 0.85, -0.08), (1.25, 1.15, 0.08))
    curve = contrast * (np.linspace(0, 1, 256) ** gamma - 0.5) + 0.5 + brightness
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, 5))
    noisy = (255 * curve).astype(np.float32)[pixels] + noise
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def pose(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    """PIL's affine coefficients (output to input) of up to 6 degrees, 6 % in size and 4 % in place about the centre."""
    angle = np.deg2rad(rng.uniform(-6, 6))
    scale = rng.uniform(0.94, 1.06)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale  # determinant 1 / scale^2 > 0: no reflection
    centre = np.array(size) / 2
    shift = rng.uniform(-0.04, 0.04, 2) * size
    x, y = centre - np.array([[cos, -sin], [sin, cos]]) @ (centre + shift)
    return float(cos), float(-sin), float(x), float(sin), float(cos), float(y)
