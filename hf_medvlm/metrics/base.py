"""What every metric of this folder shares: report text and scores stay in memory, and no folder is made for them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from hf_medvlm.errors import clipped, library_errors

if TYPE_CHECKING:
    from evaluate import Metric as _Metric  # what the mix-in stands in front of
    from evaluate import MetricInfo
else:
    _Metric = object


def check_sides(name: str, predictions: Any, references: Any) -> None:
    """Raise `ValueError` unless both are lists (or arrays) of one length, without None."""
    for side, rows in (("predictions", predictions), ("references", references)):
        if rows is None or isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__len__") or _is_scalar(rows):
            raise ValueError(f"{name}: {side} must be a list with an entry for each study, got {clipped(rows)}")
        missing = next((number for number, row in enumerate(rows) if row is None), None)
        if missing is not None:
            raise ValueError(f"{name}: row {missing} of the {side} is None; leave the study out on both sides")
    if len(predictions) != len(references):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(references)} references; give one for each")


def check_options(name: str, compute: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a keyword that `compute` does not take, with those that it does."""
    parameters = inspect.signature(compute).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
        there = ", ".join(key for key in parameters if key not in ("predictions", "references")) or "none"
        raise ValueError(f"{name} takes no {clipped(', '.join(map(repr, unknown)))}; its keyword arguments: {there}")


def _is_scalar(rows: Any) -> bool:
    return getattr(rows, "shape", None) == ()


def numbers(name: str, rows: Any) -> np.ndarray:
    """`rows` as an array of numbers.

    Raises:
        ValueError: something in it is no number, or rows differ in length.
    """
    try:
        array = np.asarray(rows)
        return array if array.dtype.kind in "fiub" else array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be numbers, rows of one length: {clipped(str(error))}") from error


def text_pairs_info(
    description: str | None,
    inputs: str | None = "predictions: texts; references: texts.",
    several_references: bool = False,
) -> MetricInfo:
    """What `evaluate` is told of a metric that compares a text with a text.

    Args:
        description: the docstring of the metric's module.
        inputs: of its `compute`.
        several_references: whether a prediction may have a list of references.
    """
    from evaluate import MetricInfo

    text = datasets.Value("string")
    features = datasets.Features({"predictions": text, "references": text})
    if several_references:
        features = [datasets.Features({"predictions": text, "references": datasets.Sequence(text)}), features]
    return MetricInfo(description=description or "", citation="", inputs_description=inputs or "", features=features)


class InMemory(_Metric):
    """Mixed into an `evaluate.Metric`: one that never spools its inputs to disk, however it is loaded.

    evaluate's default writes predictions and references to `$HF_HOME/metrics`, where they stay if a run dies
    (reference text of credentialed corpora must not). A mix-in and no `evaluate.Metric` itself: `evaluate.load` takes
    the first subclass of it that it meets in a module, and must not meet this one.
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **options: Any) -> None:
        del keep_in_memory  # `evaluate.load` passes False by default
        super().__init__(config_name=config_name, keep_in_memory=True, **options)
        if config_name:
            self._module_info.module_name = config_name  # `evaluate.combine` tells its metrics apart by it

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """evaluate's own, once it is sure that there is a prediction for each reference.

        Raises:
            ValueError: one side is missing or no list, the two differ in length, a row is None or of another kind.
        """
        name = self._module_info.module_name.rpartition("/")[2]
        if self.writer is None or predictions is not None or references is not None:
            check_sides(name, predictions, references)
        with library_errors(
            f"{name}: these predictions and references cannot be scored", "see the metric's description"
        ):
            return super().compute(predictions=predictions, references=references, **options)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # evaluate makes a folder here; nothing would ever stand in it

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        if len(batch["predictions"]):
            return super()._infer_feature_from_batch(batch)
        return self.features[0] if isinstance(self.features, list) else self.features  # evaluate asks the first row


class WeightsInFolder(InMemory):
    """An `InMemory` metric of pairs of texts that reads weights, as the `score` of its module does."""

    default_name = ""

    def __init__(
        self,
        config_name: str | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        self.weights, self.device = weights, device
        super().__init__(config_name=config_name or self.default_name, **options)

    def _info(self) -> MetricInfo:
        return text_pairs_info(sys.modules[type(self).__module__].__doc__)
