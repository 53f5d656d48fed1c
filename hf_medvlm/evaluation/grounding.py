"""The grounding measures of an evaluation, with what is to be known of each."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.evaluation.base import Scores
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.grounding import PROTOCOL, mean_scores

UNBOUNDED = ("cnr", "cnr_absolute")


def add_grounding(scores: Scores, rows: Sequence[dict[str, float]], protocol: str) -> None:
    """Add the means of `rows` and their number.

    Args:
        rows: `phrase_scores` of each phrase.
        protocol: what the heat maps are and how they were brought to the boxes.
    """
    for name, value in mean_scores(rows).items():
        how = PROTOCOL.get(name, PROTOCOL["dice"])  # the mask's precision and recall are stated with its Dice
        unit = "" if name in UNBOUNDED else facts.FRACTION
        scores.add({name: value}, facts.GROUNDING, f"{how}; {protocol}", unit=unit)
    count = {"grounding_n": len(rows)}
    scores.add(count, facts.GROUNDING, f"phrases with boxes; {protocol}", better=facts.NEITHER, unit="phrases")
