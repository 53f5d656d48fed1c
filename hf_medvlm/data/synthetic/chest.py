"""The chest that phantoms are drawn on: a patient's anatomy, one exposure of it, and where the organs lie. No findings.

The patient faces us, so that his right side is at the left of the picture. Coordinates are shares of the picture, x to
the right and y down; `d` is the distance from the midline towards one side.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from hf_medvlm.data.synthetic.random import between
from hf_medvlm.data.synthetic.shapes import Grid, disc, path, posed_grid, soft, stripes, stroke, texture

SIDES = ("right", "left")


@dataclass(frozen=True)
class Anatomy:
    """What stays the same through a patient's studies; lengths are shares of the picture."""

    width: float
    apex: float
    base: float
    heart: float
    rib_spacing: float
    rib_phase: float
    bone: float
    fat: float
    knob: float
    seed: int

    @classmethod
    def random(cls, rng: random.Random) -> Anatomy:
        return cls(
            width=between(rng, 0.97, 1.03),
            apex=between(rng, 0.115, 0.135),
            base=between(rng, 0.76, 0.79),
            heart=between(rng, 0.40, 0.44),
            rib_spacing=between(rng, 0.072, 0.080),
            rib_phase=between(rng, 0.0, 0.5),
            bone=between(rng, 0.045, 0.075),
            fat=between(rng, 0.0, 0.05),
            knob=between(rng, 0.030, 0.040),
            seed=rng.getrandbits(60),
        )


@dataclass(frozen=True)
class Exposure:
    """What differs from picture to picture: the view (PA, AP or LATERAL), pose, breath, film and noise."""

    view: str
    shift: tuple[float, float]
    tilt: float
    scale: float
    breath: float
    gain: float
    gamma: float
    noise: float
    seed: int

    @classmethod
    def random(cls, rng: random.Random, view: str) -> Exposure:
        portable = view == "AP"
        return cls(
            view=view,
            shift=(between(rng, -0.012, 0.012), between(rng, -0.012, 0.012)),
            tilt=between(rng, -0.015, 0.015) if portable else between(rng, -0.008, 0.008),
            scale=between(rng, 0.98, 1.02),
            breath=between(rng, 0.005, 0.025) if portable else between(rng, -0.006, 0.010),
            gain=between(rng, 0.90, 1.0),
            gamma=between(rng, -0.12, 0.12),
            noise=between(rng, 0.020, 0.035) if portable else between(rng, 0.012, 0.025),
            seed=rng.getrandbits(60),
        )

    def grid(self, size: int) -> tuple[Grid, Grid]:
        return posed_grid(size, self.shift, self.tilt, self.scale)


@dataclass
class Chest:
    """A frontal chest on a grid (x, y). Signs change its shape before it is drawn, and then add to its three layers:

    `fill` (0 is aerated lung, 1 as dense as soft tissue, below 0 darker than lung), `vessels` (lung markings: 1 is
    usual, 0 none) and `dense` (bone and metal: the brightness that a pixel has at least).

    Args:
        heart: cardiothoracic ratio. mediastinum: by how much its upper part is widened on each side.
        raised: side -> how far the diaphragm is pulled up. broken: sides with a displaced clavicle.
    """

    anatomy: Anatomy
    view: str
    breath: float
    x: Grid
    y: Grid
    heart: float
    mediastinum: float = 0.0
    raised: dict[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        t = np.clip((self.y - self.anatomy.apex) / 0.5, 0, 1)
        self.d = {"left": self.x - 0.5, "right": 0.5 - self.x}
        self.outline = self.anatomy.width * (0.15 + 0.23 * t * (2 - t))
        self.lung = {side: self._lung(side) for side in SIDES}
        self.heart_shadow = self._heart()
        self.fill, self.dense = np.zeros_like(self.x), np.zeros_like(self.x)
        self.vessels = np.ones_like(self.x)

    def at(self, side: str, d: float) -> float:
        """x of a point `d` away from the midline towards `side`."""
        return 0.5 + d if side == "left" else 0.5 - d

    def dome_top(self, side: str) -> float:
        right_is_higher = 0.025 if side == "right" else 0.0
        return self.anatomy.base - self.breath - right_is_higher - self.raised.get(side, 0.0)

    def dome(self, side: str) -> Grid:
        """y of the diaphragm above every x: highest mid-lung, deep at the costophrenic angle."""
        away = self.d[side] - 0.17
        return self.dome_top(side) + 0.8 * away * away + 1.4 * np.maximum(away, 0) ** 2

    def depth(self, side: str) -> Grid:
        """How far inside the chest wall and below the apex a point of this side lies."""
        away = self.d[side] - 0.15
        return np.minimum(self.outline - self.d[side], self.y - self.anatomy.apex - 2 * away * away)

    def _lung(self, side: str) -> Grid:
        inner = self.d[side] - 0.05
        return soft(self.depth(side), 0.02) * soft(inner, 0.03) * soft(self.dome(side) - self.y, 0.016)

    def _heart(self) -> Grid:
        half = self.heart * 0.38 * self.anatomy.width * (1.05 if self.view == "AP" else 1)
        x, y = 0.5 + 0.28 * half, self.anatomy.base - self.breath - 0.095
        leaning = self.y - 0.3 * (self.x - x)
        tall = 0.11 + 0.32 * half
        return disc(self.x, leaning, (x, y), (half, tall), 0.022)

    def middle(self) -> Grid:
        """Mediastinum: a band about the midline, its upper part widened, with the aortic knob on the left."""
        upper = soft(0.46 - self.y, 0.2) * soft(self.y - 0.13, 0.12)
        half = 0.05 + self.mediastinum * upper
        band = soft(half - np.abs(self.x - 0.507), 0.02)
        knob = (0.548 + 0.8 * self.mediastinum, 0.31)
        return np.maximum(band, disc(self.x, self.y, knob, (self.anatomy.knob, 1.1 * self.anatomy.knob), 0.02))

    def aerated(self) -> Grid:
        """Lung with nothing before or behind it: 1 where a healthy chest is darkest."""
        return np.maximum(self.lung["left"], self.lung["right"]) * (1 - np.maximum(self.heart_shadow, self.middle()))

    def picture(self) -> Grid:
        """The chest as seen: 0 is black, 1 white."""
        x, y, a = self.x, self.y, self.anatomy
        shade = np.maximum(self.heart_shadow, self.middle())
        lung = self.aerated()
        air = lung * (1 - self.fill)
        fine, coarse = texture(x, y, 26, a.seed), texture(x, y, 11, a.seed + 1)
        tissue = 0.62 + a.fat + 0.07 * (coarse - 0.5) + 0.10 * soft(y - 0.8, 0.3)
        seen = tissue * (1 - 0.64 * air) + 0.10 * shade
        ridges = 1 - np.abs(2 * fine - 1)
        seen += 0.16 * self.vessels * lung * np.maximum(ridges - 0.62, 0) + self._hila() * self.vessels
        seen += self._bones()
        trachea = soft(0.017 - np.abs(x - 0.5), 0.012) * soft(0.37 - y, 0.04)
        bubble = disc(x, y, (0.66, a.base + 0.10), (0.055, 0.035), 0.03)
        seen *= 1 - 0.22 * np.maximum(trachea, bubble)
        return np.maximum(seen, self.dense) * self._body()

    def _body(self) -> Grid:
        """1 inside the skin: the neck, sloping shoulders, and the sides."""
        off = np.abs(self.x - 0.5)
        shoulder = 0.05 + 0.30 * np.maximum(off - 0.14, 0)
        neck = soft(0.13 - off, 0.04)
        flank = soft(0.455 + 0.5 * self.anatomy.fat - off + 0.06 * soft(0.35 - self.y, 0.2), 0.03)
        return np.maximum(soft(self.y - shoulder, 0.05), neck) * flank

    def _hila(self) -> Grid:
        """Vessels that leave each hilum, as bright lines over the lung."""
        seen = np.zeros_like(self.x)
        for side in SIDES:
            hilum = (self.at(side, 0.085), 0.44 if side == "right" else 0.42)
            for d, y in ((0.20, 0.28), (0.26, 0.42), (0.23, 0.58), (0.15, 0.66)):
                seen = np.maximum(seen, stroke(self.x, self.y, hilum, (self.at(side, d), y), 0.016))
            seen = np.maximum(seen, 1.4 * disc(self.x, self.y, hilum, (0.03, 0.05), 0.04))
        return 0.07 * seen * self.aerated()

    def _bones(self) -> Grid:
        """What ribs, spine, clavicles and shoulders add to the brightness."""
        x, y, a = self.x, self.y, self.anatomy
        d = np.abs(x - 0.5)
        cage = soft(self.outline + 0.015 - d, 0.02) * soft(y - (a.apex - 0.02), 0.04) * soft(0.9 - y, 0.1)
        behind = (y + 0.3 * d - 1.3 * d * d) / a.rib_spacing + a.rib_phase
        front = (y - 0.20 + 0.5 * d) / (1.3 * a.rib_spacing) + a.rib_phase
        ribs = soft(stripes(behind) - 0.33, 0.12)
        ribs = ribs + 0.45 * soft(stripes(front) - 0.33, 0.2) * soft(d - 0.16, 0.1)
        spine = soft(0.040 - d, 0.02) * (0.7 + stripes(y * 15))
        shoulders = disc(d, y, (0.45, 0.13), (0.06, 0.07), 0.03)
        cage = cage * soft(d - 0.04, 0.03) * (0.4 + 0.6 * self.aerated())
        bones = ribs * cage + 0.8 * spine + shoulders
        for side in SIDES:
            bones = bones + 2.6 * self._clavicle(side)
        return a.bone * bones

    def _clavicle(self, side: str) -> Grid:
        inner, middle, outer = (0.05, 0.170), (0.20, 0.135), (0.37, 0.105)
        if side not in self.broken:
            return path(self.x, self.y, [(self.at(side, d), y) for d, y in (inner, middle, outer)], 0.024)
        ends = [(inner, (0.20, 0.105)), ((0.20, 0.195), (0.37, 0.135))]
        parts = [
            stroke(self.x, self.y, (self.at(side, a[0]), a[1]), (self.at(side, b[0]), b[1]), 0.034) for a, b in ends
        ]
        return 1.6 * np.maximum(*parts)
