"""The augmentation that a radiograph can bear: never mirrored, since reports name left and right.

A `Variation` is drawn here for one study; `augment` applies it to one picture, `hf_medvlm.collators.augmentation` to a
batch, on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR
MARGIN = 0.16
"""Share of a side by which a picture must go on behind a crop, so that no variation looks past it."""


class Variation(NamedTuple):
    """How one picture differs from the stored one.

    The pose turns by `angle` (radians), enlarges by `scale` and moves by `right` and `down` (shares of the sides) about
    the centre. The exposure is `contrast * (grey ** gamma - 0.5) + 0.5 + brightness` of grey in [0, 1]. `noise` is its
    standard deviation in grey levels of 255, `seed` what it is drawn from (32 bits).
    """

    angle: float
    scale: float
    right: float
    down: float
    gamma: float
    contrast: float
    brightness: float
    noise: float
    seed: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Variation:
        """Up to 6 degrees, 6 % in size and 4 % in place; all randomness comes from `rng`."""
        turn = np.deg2rad(6)
        low = (-turn, 0.94, -0.04, -0.04, 0.8, 0.85, -0.08, 0.0)
        high = (turn, 1.06, 0.04, 0.04, 1.25, 1.15, 0.08, 5.0)
        return cls._make([*map(float, rng.uniform(low, high)), float(rng.integers(2**32))])

    def affine(self, size: tuple[int, int], margin: int = 0) -> tuple[float, ...]:
        """PIL's coefficients (output to input) for a picture of `size` (width, height) inside a margin."""
        # determinant 1 / scale^2 > 0: no reflection
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        centre, shift = np.array(size) / 2, np.array([self.right, self.down]) * size
        x, y = centre + margin - np.array([[cos, -sin], [sin, cos]]) @ (centre + shift)
        return float(cos), float(-sin), float(x), float(sin), float(cos), float(y)

    def curve(self) -> np.ndarray:
        """(256,) float32: what each grey level becomes, not yet rounded or cut to 0 ... 255."""
        bright = self.contrast * (np.linspace(0, 1, 256) ** self.gamma - 0.5) + 0.5 + self.brightness
        return (255 * bright).astype(np.float32)

    def apply(self, image: Image.Image, margin: int = 0) -> np.ndarray:
        """uint8 (H, W): a picture of mode "L" varied; of one with a margin, what lies inside it."""
        size = (image.width - 2 * margin, image.height - 2 * margin)
        moved = image.transform(size, Image.Transform.AFFINE, self.affine(size, margin), BILINEAR)
        pixels = np.take(self.curve(), np.asarray(moved), mode="clip")
        pixels += np.float32(self.noise) * white_noise(pixels.size, int(self.seed)).reshape(pixels.shape)
        np.rint(pixels, out=pixels)
        return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A slightly different exposure of the same patient: pose, brightness, contrast, gamma, noise; "L", the same size.

    Never mirrored, since reports name left and right, and the heart lies on the left. All randomness comes from `rng`.
    """
    return Image.fromarray(Variation.draw(rng).apply(image))


def white_noise(count: int, seed: int) -> np.ndarray:
    """(count,) float32 of mean 0 and standard deviation 1, the same on every machine and device.

    The four bytes of a hash of each place (MurmurHash3's last steps, Appleby 2011) are added up: close to normal.
    """
    x = np.arange(count, dtype=np.uint32)
    x *= np.uint32(0x9E3779B1)
    x += np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    pairs = (x & np.uint32(0x00FF00FF)) + ((x >> np.uint32(8)) & np.uint32(0x00FF00FF))
    total = ((pairs + (pairs >> np.uint32(16))) & np.uint32(0xFFFF)).astype(np.float32)
    total -= np.float32(510)
    total *= np.float32(1 / NOISE_SCALE)
    return total


NOISE_SCALE = (4 * (256**2 - 1) / 12) ** 0.5
"""Standard deviation of the sum of four bytes."""
