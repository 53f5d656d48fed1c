"""How each finding looks on a phantom: where it is drawn, and as strongly as its level says. Knows no text.

The looks follow the textbook signs: an effusion has a meniscus, a pneumothorax a pleural line with no markings beyond
it, consolidation is dense with air bronchograms, edema spreads from both hila, atelectasis is plates at the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_medvlm.data.synthetic.chest import SIDES, Chest
from hf_medvlm.data.synthetic.shapes import Grid, blob, disc, path, soft, stroke, texture

ZONES = {"upper": 0.29, "mid": 0.46, "lower": 0.62}
"""y of the middle of each lung zone."""


@dataclass(frozen=True)
class Sign:
    """One finding of one patient in one study, as it is drawn and as the report names it.

    Args:
        finding: CheXpert name.
        level: how strongly it is drawn: 0.5 doubtful, 1 small or mild, 2 moderate, 3 large or severe.
        side: right, left, both, or "" where sides make no sense.
        zone: upper, mid, lower, or "".
        kind: which device or which bone, else "".
        shape: two numbers in [0, 1) that vary place and form; the same through all studies of the patient.
    """

    finding: str
    level: float = 1
    side: str = ""
    zone: str = ""
    kind: str = ""
    shape: tuple[float, float] = (0.5, 0.5)

    @property
    def sides(self) -> tuple[str, ...]:
        return SIDES if self.side == "both" else (self.side,)


def shape_chest(signs: Sequence[Sign]) -> dict:
    """What the signs change in the build of the chest, as keywords of `Chest`."""
    changes: dict = {"raised": {}}
    for sign in signs:
        if sign.finding == "Cardiomegaly":
            changes["heart"] = 0.475 + 0.08 * sign.level + 0.01 * sign.shape[0]
        elif sign.finding == "Enlarged Cardiomediastinum":
            changes["mediastinum"] = 0.035 + 0.02 * sign.level
        elif sign.finding == "Atelectasis":
            changes["raised"] = {side: 0.012 * sign.level for side in sign.sides}
        elif sign.finding == "Fracture" and sign.kind == "clavicle":
            changes["broken"] = sign.sides
    return changes


def draw(chest: Chest, sign: Sign) -> list[Grid]:
    """Add a sign to the chest's layers; return its masks, each of them one place that a box can hold."""
    return DRAW[sign.finding](chest, sign)


def _effusion(chest: Chest, sign: Sign) -> list[Grid]:
    """Fluid on the diaphragm; its surface climbs towards the chest wall."""
    masks = []
    for side in sign.sides:
        away = np.maximum(chest.d[side] - 0.12, 0)
        height = 0.025 + 0.09 * (sign.level - 0.5) + 0.02 * sign.shape[0]
        surface = (chest.dome_top(side) + 0.035 - height) - (1.2 + 0.5 * sign.level) * away * away
        fluid = soft(chest.y - surface, 0.03) * soft(chest.d[side], 0.01)
        chest.fill = np.maximum(chest.fill, fluid)
        chest.vessels = chest.vessels * (1 - fluid)
        masks.append(chest.lung[side] * fluid)
    return masks


def _pneumothorax(chest: Chest, sign: Sign) -> list[Grid]:
    """Black air without markings round the apex and the wall, and the thin line of the pleura."""
    masks = []
    for side in sign.sides:
        rim = (0.040 + 0.042 * sign.level) * (1.75 - 1.5 * chest.y)
        inwards = rim - chest.depth(side)
        mask = chest.lung[side] * soft(inwards, 0.012)
        line = chest.lung[side] * soft(0.007 - np.abs(inwards), 0.006)
        collapsed = chest.lung[side] * (1 - mask) * (0.10 * sign.level)
        chest.fill = np.maximum(chest.fill, collapsed) * (1 - mask) - 0.53 * mask + 0.55 * line
        chest.vessels = chest.vessels * (1 - mask)
        masks.append(mask)
    return masks


def _place(chest: Chest, sign: Sign, side: str) -> tuple[float, float]:
    return chest.at(side, 0.18 + 0.07 * sign.shape[0]), ZONES[sign.zone] + 0.04 * (sign.shape[1] - 0.5)


def _consolidation(chest: Chest, sign: Sign) -> list[Grid]:
    """A dense lobe with a straight lower border (the fissure) and dark bronchi in it."""
    masks = []
    for side in sign.sides:
        x, y = _place(chest, sign, side)
        radius = 0.070 + 0.032 * sign.level
        body = disc(chest.x, chest.y, (x, y), (1.15 * radius, radius), 0.03)
        fissure = soft((y + 0.6 * radius) - chest.y + 0.15 * (chest.d[side] - 0.2), 0.012)
        mask = chest.lung[side] * body * fissure
        ridges = 1 - np.abs(2 * texture(chest.x, chest.y, 22, chest.anatomy.seed + 3) - 1)
        bronchi = soft(ridges - 0.84, 0.3)
        chest.fill = np.maximum(chest.fill, (1.05 - 0.35 * bronchi) * mask)
        chest.vessels = chest.vessels * (1 - mask)
        masks.append(mask)
    return masks


def _opacity(chest: Chest, sign: Sign) -> list[Grid]:
    """A haze without a border, through which the vessels still show."""
    masks = []
    for side in sign.sides:
        radius = 0.13 + 0.03 * sign.level
        mask = chest.lung[side] * blob(chest.x, chest.y, _place(chest, sign, side), (radius, radius))
        chest.fill = np.maximum(chest.fill, (0.60 + 0.12 * sign.level) * mask)
        masks.append(mask)
    return masks


def _atelectasis(chest: Chest, sign: Sign) -> list[Grid]:
    """Plates of collapsed lung above a raised diaphragm: one more for each level."""
    masks = []
    for side in sign.sides:
        top, plates = chest.dome_top(side) - 0.045, []
        for number in range(max(1, round(sign.level))):
            start = (chest.at(side, 0.10 + 0.02 * sign.shape[0]), top - 0.055 * number)
            end = (chest.at(side, 0.29 + 0.02 * sign.shape[1]), top - 0.055 * number + 0.015)
            plates.append(stroke(chest.x, chest.y, start, end, 0.032))
        mask = chest.lung[side] * np.maximum.reduce(plates)
        chest.fill = np.maximum(chest.fill, (0.7 if sign.level < 1 else 1.1) * mask)
        masks.append(mask)
    return masks


def _edema(chest: Chest, sign: Sign) -> list[Grid]:
    """Haze that spreads like wings from both hila, with thickened markings."""
    masks = []
    for side in SIDES:
        wing = blob(chest.x, chest.y, (chest.at(side, 0.13), 0.47), (0.21 + 0.01 * sign.level, 0.27))
        mask = chest.lung[side] * wing
        patchy = 0.7 + 0.6 * texture(chest.x, chest.y, 20, chest.anatomy.seed + 2)
        chest.fill = np.maximum(chest.fill, np.minimum((0.32 + 0.18 * sign.level) * patchy, 1) * mask)
        chest.vessels = chest.vessels + (0.5 * sign.level) * mask
        masks.append(mask)
    return masks


def _lesion(chest: Chest, sign: Sign) -> list[Grid]:
    """A round shadow with a sharp edge: a nodule, or at level 3 a mass."""
    masks = []
    for side in sign.sides:
        radius = 0.030 + 0.018 * sign.level
        mask = disc(chest.x, chest.y, _place(chest, sign, side), (radius, radius), 0.014)
        chest.fill = np.maximum(chest.fill, (1.25 if sign.level >= 1 else 0.8) * mask)
        masks.append(mask)
    return masks


def _heart(chest: Chest, sign: Sign) -> list[Grid]:
    return [chest.heart_shadow]


def _mediastinum(chest: Chest, sign: Sign) -> list[Grid]:
    return [chest.middle() * soft(chest.y - 0.15, 0.02) * soft(0.46 - chest.y, 0.02)]


def _fracture(chest: Chest, sign: Sign) -> list[Grid]:
    """Ribs with stepped, overlapping ends at the chest wall; the clavicle's step is drawn with the chest."""
    side = sign.side
    if sign.kind == "clavicle":
        span = (0.07, 0.06)
        return [disc(chest.x, chest.y, (chest.at(side, 0.20), 0.15), span, 0.01)]
    parts = []
    for number in range(3):
        y = 0.36 + 0.06 * sign.shape[0] + 0.075 * number
        parts += [
            stroke(chest.x, chest.y, (chest.at(side, 0.25), y - 0.022), (chest.at(side, 0.325), y - 0.012), 0.028),
            stroke(chest.x, chest.y, (chest.at(side, 0.315), y + 0.018), (chest.at(side, 0.375), y + 0.036), 0.028),
        ]
    mask = np.maximum.reduce(parts)
    chest.dense = np.maximum(chest.dense, 0.95 * mask)
    return [mask]


def _device(chest: Chest, sign: Sign) -> list[Grid]:
    """Metal and plastic, brighter than bone, in the place where each device belongs."""
    x, y = chest.x, chest.y
    if sign.kind == "pacemaker":
        box = disc(x, y, (chest.at(sign.side, 0.27), 0.22), (0.065, 0.055), 0.01)
        lead = [(chest.at(sign.side, 0.22), 0.22), (0.47, 0.24), (0.46, 0.52), (0.54, 0.66)]
        mask = np.maximum(box, path(x, y, lead, 0.018))
    elif sign.kind == "endotracheal tube":
        walls = [stroke(x, y, (0.5 + offset, 0.0), (0.5 + offset, 0.33), 0.016) for offset in (-0.018, 0.018)]
        mask = np.maximum(*walls)
    elif sign.kind == "PICC":
        arm, shoulder = (chest.at(sign.side, 0.44), 0.30), (chest.at(sign.side, 0.30), 0.13)
        mask = path(x, y, [arm, shoulder, (0.45, 0.19), (0.45, 0.42)], 0.020)
    elif sign.kind == "sternal wires":
        knots = [[(0.465, t), (0.535, t + 0.03), (0.535, t), (0.465, t + 0.03)] for t in (0.26, 0.36, 0.46, 0.56)]
        mask = np.maximum.reduce([path(x, y, [*knot, knot[0]], 0.016) for knot in knots])
    elif sign.kind == "chest tube":
        track = [(chest.at(sign.side, d), height) for d, height in ((0.40, 0.62), (0.30, 0.56), (0.17, 0.24))]
        mask = path(x, y, track, 0.030)
    else:
        raise ValueError(f"there is no drawing of a device {sign.kind!r}")
    chest.dense = np.maximum(chest.dense, mask)
    return [mask]


DRAW: dict[str, Callable[[Chest, Sign], list[Grid]]] = {
    "Cardiomegaly": _heart,
    "Enlarged Cardiomediastinum": _mediastinum,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Lung Opacity": _opacity,
    "Atelectasis": _atelectasis,
    "Lung Lesion": _lesion,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Fracture": _fracture,
    "Support Devices": _device,
}
"""In the order of drawing: what comes later covers what came before."""
