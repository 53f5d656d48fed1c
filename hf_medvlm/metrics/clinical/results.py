"""What every clinical metric gives: values over all studies, a value for each study, and the facts of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_medvlm.metrics.facts import Fact

GROUP = "Clinical metrics"


@dataclass
class ClinicalResult:
    """Scores of one metric.

    Args:
        values: name -> value over all studies; NaN without any.
        per_study: name -> one value a study, in their order.
        facts: name -> group, direction, unit and protocol, of all names above.
    """

    values: dict[str, float] = field(default_factory=dict)
    per_study: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float | np.floating,
        protocol: str,
        per_study: Sequence[float] | np.ndarray | None = None,
        **fact: str,
    ) -> None:
        """One score with its protocol, and its value for each study where it is a mean over them."""
        self.values[name] = float(value)
        self.facts[name] = Fact(GROUP, protocol, **fact)
        if per_study is not None:
            self.per_study[name] = [float(score) for score in per_study]


def check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    """One text for each study on both sides.

    Raises:
        ValueError: another number of predictions than of references, or something that is no text.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references; give one for each")
    for number, pair in enumerate(zip(predictions, references, strict=True)):
        if not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"row {number}: prediction and reference must be texts, got {pair[0]!r:.100} and {pair[1]!r:.100}"
            )
