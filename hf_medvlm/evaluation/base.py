"""What an evaluation is: batches in, per-study tensors, scores out. One subclass a family, in its `evaluation.py`.

The trainer runs it over any number of processes, hands each study to it exactly once, and puts the tensors back in the
order of the data set, so that no score depends on the batch size or on the number of processes. `compute_metrics` gives
the same numbers to the stock `Trainer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hf_medvlm.data.files import write_json
from hf_medvlm.data.rows import Row, StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.metrics.facts import FRACTION, HIGHER, Fact

if TYPE_CHECKING:
    from transformers import EvalPrediction

PASS_BATCH = 16  # studies at a time where `compute_metrics` has to run the model itself

SETTINGS = "inference.json"
"""Beside the weights: what predictions depend on and the model does not hold (prompt, lengths, thresholds)."""


@dataclass
class Scores:
    """What a results file holds (section 6 of the design), and the predictions beside it.

    Args:
        metrics: name -> value; NaN where a metric is undefined.
        baselines: trivial baseline -> the same names; each stands beside the score it is to be held against.
        intervals: name -> (low, high), 95 %, by patient.
        facts: name -> its group, direction, unit and protocol. Every metric needs one; scores of single studies in
            `predictions` may have one too.
        n: number of studies.
        predictions: one plain dict a study: `study_id`, `patient_id`, `reference`, `prediction`, `scores`, ...
        figures: plain data that figures are drawn from.
    """

    metrics: dict[str, float]
    n: int
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        values: Mapping[str, float],
        group: str,
        protocol: str | Mapping[str, str],
        *,
        better: str = HIGHER,
        unit: str = FRACTION,
    ) -> None:
        """Add metrics with what is to be known of them.

        Args:
            values: name -> value.
            group, better, unit: see `Fact`; the same for all of `values`.
            protocol: one text for all, or a text for each name.
        """
        self.metrics |= values
        self.state(values, group, protocol, better=better, unit=unit)

    def state(
        self,
        names: Sequence[str] | Mapping[str, float],
        group: str,
        protocol: str | Mapping[str, str],
        *,
        better: str = HIGHER,
        unit: str = FRACTION,
    ) -> None:
        """As `add`, for names without a value of their own: scores that only single studies have."""
        for name in names:
            self.facts[name] = Fact(group, protocol if isinstance(protocol, str) else protocol[name], better, unit)

    @property
    def protocol(self) -> dict[str, str]:
        """Name -> how it was measured, of every metric."""
        return {name: fact.protocol for name, fact in self.facts.items()}

    def to_dict(self) -> dict[str, Any]:
        """The results file: everything but the predictions; NaN becomes null, as JSON has none.

        Raises:
            ValueError: a metric without facts; the evaluation that computes it must state them.
        """
        unstated = [name for name in self.metrics if name not in self.facts]
        if unstated:
            raise ValueError(
                f"nothing is stated of {', '.join(unstated)}: add metrics with Scores.add(values, group, protocol), so "
                "that the page and the card can name group, direction, unit and protocol"
            )
        return without_nan(
            {
                "metrics": self.metrics,
                "baselines": self.baselines,
                "intervals": self.intervals,
                "protocol": self.protocol,
                "facts": {name: fact.to_dict() for name, fact in self.facts.items()},
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
    """How one family is evaluated. Subclasses give `collate`, `predict` and `score`.

    `studies` are those that `compute_metrics` scores, in the order of the evaluation data set; our own trainer sets
    them by itself.
    """

    studies: Sequence[Study] = ()
    METRICS: ClassVar[tuple[str, ...]] = ("*",)
    """Shell patterns of the names of its metrics, so that a misspelt `--metric_for_best_model` is known beforehand."""

    def knows(self, name: str) -> bool:
        """Whether `score` gives a metric of this name, with `eval_` before it or not."""
        return any(fnmatchcase(name.removeprefix("eval_"), pattern) for pattern in self.METRICS)

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """Why `metric` will not be defined on a split of these studies, whatever the model says; None where it will be,
        or where nobody can tell."""
        return None

    def instead(self) -> tuple[tuple[str, bool], ...]:
        """(metric, whether more is better) of what may choose the best checkpoint where the headline is undefined, the
        best first."""
        return ()

    def class_counts(self, studies: Sequence[Study]) -> dict[str, tuple[int, int]]:
        """Finding -> how many of the studies are scored as having it, and how many as not having it; {} where no score
        goes by finding."""
        return {}

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

    def collate_for_trainer(self, rows: list[Row]) -> dict[str, Any]:
        """The evaluation batch for a stock trainer's `data_collator`: the keys of `forward` alone, `labels` among them,
        without which that trainer calls no `compute_metrics`.
        """
        raise TypeError(f"{type(self).__name__} must define collate_for_trainer")

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """What `predict` gives for each study, from what the stock Trainer has collected of `forward` or `generate`."""
        raise TypeError(f"{type(self).__name__} must define outputs_of")

    def compute_metrics(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """For the stock trainers' `compute_metrics`: the metrics of `score`, those that are undefined left out.

        Args:
            eval_prediction: the whole split, in the order of `studies`.

        Raises:
            ValueError: there are no `studies`, or another number of them than of predictions.
        """
        count = len(np.atleast_1d(eval_prediction.label_ids))
        if count != len(self.studies):
            raise ValueError(
                f"{count} predictions for {len(self.studies)} studies: give the evaluation studies=, those of the "
                "eval_dataset in the same order"
            )
        scores = self.score(self.outputs_of(eval_prediction), list(self.studies))
        return {name: float(value) for name, value in without_nan(scores.metrics).items() if value is not None}


@torch.no_grad()
def run_over(evaluation: Evaluation, model: nn.Module, studies: Sequence[Study]) -> dict[str, list[np.ndarray]]:
    """`Evaluation.predict` over all studies in this process alone, for what the output of `forward` does not tell."""
    rows, parts = StudyRows(list(studies)), []
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for start in range(0, len(rows), PASS_BATCH):
        batch = evaluation.collate([rows[i] for i in range(start, min(start + PASS_BATCH, len(rows)))])
        outputs = evaluation.predict(model, moved(batch, device))
        parts.append({name: to_numpy(tensor) for name, tensor in outputs.items()})
    model.train(training)
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on `device`, however deep they stand."""
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    return batch.to(device) if torch.is_tensor(batch) else batch


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the CPU; floating point as float32."""
    return tensor.float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
