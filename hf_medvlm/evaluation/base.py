"""What an evaluation is: batches in, per-study tensors, scores out. One subclass a family, in `evaluation_<family>.py`.

The trainer runs it over any number of processes, hands each study to it exactly once, and puts the tensors back in the
order of the data set, so that no score depends on the batch size or on the number of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_medvlm.data.files import write_json
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study

SETTINGS = "inference.json"
"""Beside the weights: what predictions depend on and the model does not hold (prompt, lengths, thresholds)."""


@dataclass
class Scores:
    """What a results file holds (section 6 of the design), and the predictions beside it.

    Args:
        metrics: name -> value; NaN where a metric is undefined.
        baselines: trivial baseline -> the same names; each stands beside the score it is to be held against.
        intervals: name -> (low, high), 95 %, by patient.
        protocol: name -> how it was measured: tokeniser, case, gallery, tie rule.
        n: number of studies.
        predictions: one plain dict a study: `study_id`, `patient_id`, `reference`, `prediction`, `scores`, ...
        figures: plain data that figures are drawn from.
    """

    metrics: dict[str, float]
    n: int
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The results file: everything but the predictions; NaN becomes null, as JSON has none."""
        return without_nan(
            {
                "metrics": self.metrics,
                "baselines": self.baselines,
                "intervals": self.intervals,
                "protocol": self.protocol,
                "n": self.n,
                "figures": self.figures,
            }
        )

    def table(self) -> str:
        """Scores and baselines as a text table, a metric a line."""
        names = [name for name, value in self.metrics.items() if isinstance(value, (int, float))]
        columns = ["score", "95 % interval", *self.baselines]
        rows = []
        for name in names:
            low_high = self.intervals.get(name)
            cells = [_short(self.metrics[name]), f"{_short(low_high[0])} to {_short(low_high[1])}" if low_high else ""]
            rows.append([name, *cells, *(_short(values.get(name)) for values in self.baselines.values())])
        widths = [max(len(row[i]) for row in [["", *columns], *rows]) for i in range(len(columns) + 1)]
        lines = [
            " ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in [["", *columns], *rows]
        ]
        return "\n".join(lines)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def without_nan(value: Any) -> Any:
    """The same plain data with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Evaluation:
    """How one family is evaluated. Subclasses give the three steps."""

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """The evaluation batch of `rows`: never augmented."""
        raise TypeError(f"{type(self).__name__} must define collate")

    def predict(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Tensors of one batch, first dimension a study; widths may differ between batches."""
        raise TypeError(f"{type(self).__name__} must define predict")

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        """Scores of the whole split; `outputs[name][i]` belongs to `studies[i]`."""
        raise TypeError(f"{type(self).__name__} must define score")

    # -- the same model on images without a text: what `hf_medvlm/inference` runs -------------------------------------

    def collate_images(self, rows: list[Row]) -> dict[str, Any]:
        """The part of `collate` that needs no text."""
        raise TypeError(f"{type(self).__name__} must define collate_images")

    def predict_images(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The part of `predict` that needs no text; `predict` calls it, so that both say the same of an image."""
        raise TypeError(f"{type(self).__name__} must define predict_images")

    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """What `predictions.jsonl` says of one study without looking at a reference.

        Args:
            outputs: of `predict_images`, the row of one study.
        """
        raise TypeError(f"{type(self).__name__} must define describe")

    def settings(self) -> dict[str, Any]:
        """What the predictions depend on and the saved model does not hold, as plain data: `inference.json`."""
        return {}

    def write_settings(self, folder: str | Path, **more: Any) -> None:
        """`inference.json` in a model's folder: `settings()`, and what the caller adds."""
        write_json(Path(folder) / SETTINGS, without_nan(self.settings() | more))
