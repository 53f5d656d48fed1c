"""Pictures of phantoms: a chest, its signs and an exposure in, 8-bit pixels and boxes out. No disk, no text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_medvlm.data.synthetic.chest import Anatomy, Chest, Exposure
from hf_medvlm.data.synthetic.shapes import Grid, disc, grain, path, soft, stripes, texture
from hf_medvlm.data.synthetic.signs import DRAW, ZONES, Sign, draw, shape_chest

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


def frontal(
    anatomy: Anatomy, exposure: Exposure, signs: Sequence[Sign], size: int
) -> tuple[np.ndarray, list[tuple[Sign, Box]]]:
    """A PA or AP view.

    Returns:
        (size, size) uint8, and the boxes: for each sign, one for each place where it is drawn.
    """
    x, y = exposure.grid(size)
    build = {"heart": anatomy.heart} | shape_chest(signs)
    chest = Chest(anatomy, exposure.view, exposure.breath, x, y, **build)
    boxes = []
    for sign in sorted(signs, key=lambda sign: list(DRAW).index(sign.finding)):
        boxes += [(sign, box) for box in map(_box, draw(chest, sign)) if box]
    marker = path(x, y, [(0.90, 0.05), (0.90, 0.10), (0.925, 0.10)], 0.012)  # the technician's lead "L"
    return _film(np.maximum(chest.picture(), marker), exposure), boxes


def _box(mask: Grid) -> Box | None:
    """The smallest box round the pixels that are at least half as strong as the strongest one."""
    strong = mask > max(0.5 * float(mask.max()), 0.05)
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _film(picture: Grid, exposure: Exposure) -> np.ndarray:
    """(H, W) uint8: the film's curve, and quantum noise that grows where less radiation comes through."""
    curve = np.clip(picture, 0, 1)
    curve = exposure.gain * (curve + exposure.gamma * curve * (1 - curve))
    noise = exposure.noise * (0.5 + curve) * grain(len(picture), exposure.seed)
    return np.rint(np.clip(curve + noise, 0, 1) * 255).astype(np.uint8)


def lateral(anatomy: Anatomy, exposure: Exposure, signs: Sequence[Sign], size: int) -> np.ndarray:
    """A lateral view, the spine at the right: (size, size) uint8. What sides there are lie over each other."""
    x, y = exposure.grid(size)
    present = {sign.finding: sign for sign in signs}
    base = anatomy.base - exposure.breath
    dome = base + 0.9 * (x - 0.42) * (x - 0.42) * 1.8
    chest = disc(x, y, (0.5, 0.50), (0.37 * anatomy.width, 0.43), 0.03)
    lung = chest * soft(dome - y, 0.02) * soft(x + 0.55 * y - 0.36, 0.03)
    ratio = shape_chest([s for s in signs if s.finding == "Cardiomegaly"]).get("heart", anatomy.heart)
    leaning = y - 0.5 * (x - 0.36)
    heart = disc(x, leaning, (0.36, float(base) - 0.13), (0.10 + 0.3 * (ratio - 0.3), 0.17), 0.05)
    aorta = disc(x, y, (0.50, 0.30), (0.12, 0.10), 0.05) - disc(x, y, (0.50, 0.32), (0.06, 0.07), 0.05)
    fill = np.maximum(0.75 * heart, 0.3 * aorta)
    if "Pleural Effusion" in present:
        surface = dome - (0.05 + 0.08 * present["Pleural Effusion"].level) * soft(x - 0.5, 0.3)
        fill = np.maximum(fill, soft(y - surface, 0.03))
    if "Edema" in present:
        fill = np.maximum(fill, (0.15 * present["Edema"].level))
    for name, radius, density in (
        ("Consolidation", 0.09, 0.9),
        ("Lung Opacity", 0.11, 0.5),
        ("Lung Lesion", 0.045, 1.0),
    ):
        if name in present:
            sign = present[name]
            centre = (0.42 + 0.2 * sign.shape[0], ZONES[sign.zone])
            fill = np.maximum(fill, density * disc(x, y, centre, (radius, radius), 0.04))
    tissue = (0.60 + anatomy.fat) + 0.08 * texture(x, y, 12, anatomy.seed)
    bend = x - 0.79 + 0.5 * (y - 0.5) ** 2
    spine = soft(0.05 - np.abs(bend), 0.03) * (0.8 + 1.4 * stripes(13 * y))
    ribs = soft(stripes((y - 0.7 * x) / (1.2 * anatomy.rib_spacing)) - 0.36, 0.12) * chest
    picture = tissue * (1 - 0.62 * lung * (1 - fill)) + anatomy.bone * (spine + 0.5 * ribs)
    body = disc(x, y, (0.52, 0.55), (0.46, 0.62), 0.03)
    return _film(picture * body, exposure)
