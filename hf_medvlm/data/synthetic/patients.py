"""Made-up patients: what each of them has, where, and how it goes on. Draws nothing, writes nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hf_medvlm.data.synthetic.chest import SIDES, Anatomy, Exposure
from hf_medvlm.data.synthetic.random import between, pick, rng_for
from hf_medvlm.data.synthetic.reports import GRADED
from hf_medvlm.data.synthetic.signs import ZONES, Sign

HEALTHY = 0.19
"""Share of patients who start with nothing; some fall ill later, and some of the ill recover."""

WEIGHTS = {
    "Pneumothorax": 1.0, "Pleural Effusion": 1.6, "Cardiomegaly": 1.3, "Consolidation": 1.1, "Lung Opacity": 1.1,
    "Atelectasis": 1.1, "Edema": 1.0, "Lung Lesion": 1.0, "Fracture": 0.8, "Support Devices": 1.2,
    "Enlarged Cardiomediastinum": 0.7,
}  # fmt: skip
"""How often each finding is drawn into a patient. The order settles who takes a place first (see `_placed`)."""

NOT_WITH_EDEMA = {"Edema", "Pneumothorax", "Consolidation", "Lung Opacity"}
"""Edema covers both lungs: what it would hide or look like is not drawn beside it."""

HOLDS = {
    "Pneumothorax": {"upper", "mid", "lower"},
    "Pleural Effusion": {"mid", "lower"},
    "Atelectasis": {"lower"},
}
"""Lung zones that a finding needs for itself on its side, beside those that have a zone of their own."""

DEVICES = ("pacemaker", "endotracheal tube", "PICC", "sternal wires", "chest tube")

STEPS: dict[float, tuple[float, float]] = {0: (0, 1), 0.5: (0, 1), 1: (0, 2), 2: (1, 3), 3: (2, 3)}
"""Level -> the next level when a finding gets better, and when it gets worse."""


@dataclass(frozen=True)
class Visit:
    """One study of a patient. `prior` is None at the first."""

    signs: tuple[Sign, ...]
    prior: tuple[Sign, ...] | None
    day: int
    frontal: Exposure
    lateral: Exposure | None


@dataclass(frozen=True)
class Patient:
    patient_id: str
    anatomy: Anatomy
    visits: tuple[Visit, ...]


def patient(seed: int, number: int) -> Patient:
    """The patient of that number: a function of (seed, number) and nothing else."""
    rng = rng_for(seed, "patient", number)
    anatomy = Anatomy.random(rng)
    courses = _courses(rng, pick(rng, (1, 2, 3, 4), (0.2, 0.3, 0.3, 0.2)))
    visits, prior, day = [], None, int(between(rng, 0, 3000))
    for signs in courses:
        view = "AP" if rng.random() < (0.6 if any(s.finding == "Support Devices" for s in signs) else 0.3) else "PA"
        frontal = Exposure.random(rng, view)
        lateral = Exposure.random(rng, "LATERAL") if view == "PA" and rng.random() < 0.25 else None
        visits.append(Visit(signs, prior, day, frontal, lateral))
        prior, day = signs, day + 1 + int(between(rng, 0, 60))
    return Patient(f"p{number:05d}", anatomy, tuple(visits))


def _courses(rng: random.Random, visits: int) -> list[tuple[Sign, ...]]:
    """The signs at every visit. All graded findings of a patient mostly go the same way from one visit to the next."""
    if rng.random() < HEALTHY:
        return [()] * visits
    signs = _placed(rng, _findings(rng, pick(rng, (1, 2, 3, 4), (0.1, 0.35, 0.35, 0.2))))
    onset = [int(between(rng, 1, visits)) if visits > 1 and rng.random() < 0.2 else 0 for _ in signs]
    levels = [sign.level for sign in signs]
    rows = []
    for visit in range(visits):
        way = pick(rng, ("improving", "stable", "worsening"), (0.4, 0.2, 0.4))
        for index, sign in enumerate(signs):
            if visit > onset[index] and sign.finding in GRADED and levels[index] > 0 and rng.random() < 0.85:
                better, worse = STEPS[levels[index]]
                levels[index] = {"improving": better, "stable": levels[index], "worsening": worse}[way]
        rows.append(
            tuple(
                replace(sign, level=level)
                for sign, level, start in zip(signs, levels, onset, strict=True)
                if visit >= start and level > 0
            )
        )
    return rows


def _findings(rng: random.Random, count: int) -> list[str]:
    """Different findings that can be seen side by side, in the order of `WEIGHTS`."""
    left = dict(WEIGHTS)
    chosen: set[str] = set()
    while len(chosen) < count:
        name = pick(rng, list(left), list(left.values()))
        del left[name]
        chosen.add(name)
        if name in NOT_WITH_EDEMA:
            for other in NOT_WITH_EDEMA if name == "Edema" else {"Edema"}:
                left.pop(other, None)
    return [name for name in WEIGHTS if name in chosen]


def _placed(rng: random.Random, names: list[str]) -> list[Sign]:
    """Give each finding a level and a place that no other one hides; a finding without a free place is left out."""
    free = {(side, zone) for side in SIDES for zone in ZONES}
    if "Cardiomegaly" in names:
        free.discard(("left", "lower"))
    signs: list[Sign] = []
    for name in names:
        level = pick(rng, (0.5, 1, 2, 3), (0.1, 0.25, 0.37, 0.28)) if name in GRADED else pick(rng, (1, 2, 3))
        shape = (rng.random(), rng.random())
        place = _place(rng, name, free)
        if place is not None:
            side, zone, kind = place
            signs.append(Sign(name, level, side, zone, kind, shape))
            held = {zone} if zone else HOLDS.get(name, set())
            free -= {(held_side, held_zone) for held_side in signs[-1].sides for held_zone in held}
    return signs


def _place(rng: random.Random, name: str, free: set[tuple[str, str]]) -> tuple[str, str, str] | None:
    """(side, zone, kind) of a finding in the parts of the lungs that are free, None where it has no place."""
    sides = [side for side in SIDES if all((side, zone) in free for zone in HOLDS.get(name, ()))]
    if name in ("Consolidation", "Lung Opacity", "Lung Lesion"):
        return (*pick(rng, sorted(free)), "") if free else None
    if name == "Support Devices":
        kind = pick(rng, [kind for kind in DEVICES if kind != "pacemaker" or ("left", "upper") in free])
        return {"pacemaker": "left", "PICC": "right", "chest tube": pick(rng, SIDES)}.get(kind, ""), "", kind
    if name == "Fracture":
        return pick(rng, SIDES), "", pick(rng, ("rib", "clavicle"))
    if name not in HOLDS:
        return "", "", ""
    if name != "Pneumothorax" and len(sides) == 2 and rng.random() < 0.3:
        return "both", "", ""
    return (pick(rng, sides), "", "") if sides else None
