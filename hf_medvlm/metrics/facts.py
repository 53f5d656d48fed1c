"""What is to be known of a metric beside its value: its group, which way is better, its unit, how it was measured.

The code that computes a metric states these; figures, report page and card only read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HIGHER, LOWER, NEITHER = "higher", "lower", "neither"
FRACTION = "fraction"  # the value lies in [0, 1]
TEXT, TEXT_FINDINGS, RETRIEVAL, FINDINGS = "Text", "Findings in the text", "Retrieval", "Findings"
GROUNDING, CHANGE, SENTENCES, QUESTIONS = "Grounding", "Change over time", "Sentences", "Questions"
AUDIT = "Audit of the findings"
TRAINING, COST = "Training", "Speed and memory"


@dataclass(frozen=True)
class Fact:
    """What an evaluation states of one metric.

    Args:
        group: title of the table part in which the metric stands.
        protocol: how it was measured, in words: tokeniser, case, gallery, tie rule, which studies were left out.
        better: "higher", "lower", or "neither" for a count or a setting that is no score.
        unit: "fraction" for values in [0, 1]; else the unit in words ("nats", "rank", "studies"), "" for a bare number.

    Raises:
        ValueError: `better` is another word.
    """

    group: str
    protocol: str
    better: str = HIGHER
    unit: str = FRACTION

    def __post_init__(self) -> None:
        if self.better not in (HIGHER, LOWER, NEITHER):
            raise ValueError(f"better is {HIGHER!r}, {LOWER!r} or {NEITHER!r}, got {self.better!r}")

    def to_dict(self) -> dict[str, str]:
        """Group, direction and unit, as the results file holds them; the protocol stands there by itself."""
        return {"group": self.group, "better": self.better, "unit": self.unit}

    @classmethod
    def from_dict(cls, values: Mapping[str, object], protocol: str = "") -> Fact:
        """The fact in a results file; whatever is missing or of another kind is unknown, and shown as such."""
        group, better, unit = (values.get(key) for key in ("group", "better", "unit"))
        return cls(
            group if isinstance(group, str) and group else "Other",
            protocol,
            better if better in (HIGHER, LOWER, NEITHER) else NEITHER,
            unit if isinstance(unit, str) else "",
        )
