"""Where a prediction and its reference agree, contradict, miss or add: by finding, and by sentence. Draws nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_medvlm.language.findings import label_report
from hf_medvlm.language.sections import sentences

RELATIONS = ("contradict", "missed", "added", "unsure", "agree")
"""Worst first. `unsure`: one side is uncertain and the other is not."""
ERRORS = RELATIONS[:3]
STATE_WORDS = {1: "present", 0: "absent", -1: "uncertain", None: "not mentioned"}
DERIVED = "No Finding"  # follows from the other findings, so it would count each of their errors twice

Segment = tuple[str, str, str]


def relation(reference: int | None, prediction: int | None) -> str | None:
    """How two states of one finding stand to each other: one of `RELATIONS`, or None where there is nothing to say.

    A finding denied on one side and not mentioned on the other is no error: reports leave out most negatives.
    """
    if reference == prediction:
        return None if reference is None else "agree"
    if -1 in (reference, prediction):
        return "unsure"
    if prediction is None:
        return "missed" if reference == 1 else None
    if reference is None:
        return "added" if prediction == 1 else None
    return "contradict"


def compare(
    reference: Mapping[str, int | None], prediction: Mapping[str, int | None], *, labelled_only: bool = False
) -> dict[str, str]:
    """Finding -> relation, for every finding that the model was asked for and either side speaks of.

    Args:
        prediction: finding -> state or None, for all that the model could have named: no other counts as missed.
        labelled_only: leave out findings without a state in the reference: for classifiers, which answer every
            question, where a reference that is silent is a missing label and not a denial.
    """
    names = [n for n in prediction if n != DERIVED and not (labelled_only and reference.get(n) is None)]
    relations = {name: relation(reference.get(name), prediction.get(name)) for name in names}
    return {name: how for name, how in relations.items() if how}


def mark(text: str, other: Mapping[str, int | None], *, is_reference: bool) -> list[Segment]:
    """`text` cut into segments of (text, relation or "", explanation or ""), which joined give it back unchanged.

    A sentence takes the worst relation of the findings it names to the states of the other text; a finding that is no
    key of `other` is one nobody asked for.
    """
    segments: list[Segment] = []
    place = 0
    for sentence in sentences(text):
        # `sentences` collapses white space; find the piece it came from.
        match = re.compile(r"\s+".join(map(re.escape, sentence.split()))).search(text, place)
        how, why = _judge(sentence, other, is_reference)
        if match is None or not how:
            continue
        if match.start() > place:
            segments.append((text[place : match.start()], "", ""))
        segments.append((match.group(), how, why))
        place = match.end()
    if place < len(text):
        segments.append((text[place:], "", ""))
    return segments


def _judge(sentence: str, other: Mapping[str, int | None], is_reference: bool) -> tuple[str, str]:
    verdicts: list[tuple[str, str]] = []
    for name, state in label_report(sentence).items():
        if state is None or name == DERIVED or name not in other:
            continue
        there = other.get(name)
        how = relation(state, there) if is_reference else relation(there, state)
        if how:
            side = "prediction" if is_reference else "reference"
            verdicts.append((how, f"{name} {STATE_WORDS[state]}; {side}: {STATE_WORDS[there]}"))
    if not verdicts:
        return "", ""
    worst = min((how for how, _ in verdicts), key=RELATIONS.index)
    return worst, "\n".join(why for _, why in verdicts)


def agreement(relations: Mapping[str, Any]) -> float | None:
    """Share of a study's findings that agree, the unsure counted as half; None where no finding is named."""
    if not relations:
        return None
    worth = {"agree": 1.0, "unsure": 0.5}
    return sum(worth.get(how, 0.0) for how in relations.values()) / len(relations)
