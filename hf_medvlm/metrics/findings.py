"""How well scores tell findings apart: AUC, AP, accuracy, precision, recall and F1 of each finding and their means.

NumPy only: knows no model, prompt or file. What is not labelled is not counted, and what is undefined is NaN, never 0.

Headline: `mean_auc`, greater is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import datasets
import evaluate
import numpy as np

from hf_medvlm.errors import clipped
from hf_medvlm.metrics.base import InMemory, numbers

PRIMARY, GREATER_IS_BETTER = "mean_auc", True
KINDS = ("auc", "ap", "accuracy", "precision", "recall", "f1")
PROTOCOL = (
    "per finding over the studies that label it present or absent; means over the findings that have both classes "
    "(and, for precision, a prediction); AUC gives ties half; AP is scikit-learn's sum over steps; present is "
    "score > threshold"
)
FEW = 5  # a finding with fewer studies of either class is named beside the means
UNCERTAIN = {"ignore": np.nan, "zero": 0.0, "one": 1.0}


def label_matrix(
    labels: Iterable[Mapping[str, int | None]], findings: Sequence[str], *, uncertain: str = "ignore"
) -> np.ndarray:
    """States of `findings` for each study as (N, C) floats: 1 present, 0 absent, NaN where the study says nothing.

    Args:
        labels: each study's `Study.labels`.
        uncertain: what a state of -1 counts as: "ignore" (NaN), "zero" or "one" (CheXpert's U-Ignore, U-Zeros, U-Ones).

    Raises:
        ValueError: an unknown policy.
    """
    if uncertain not in UNCERTAIN:
        raise ValueError(f"uncertain must be one of {', '.join(UNCERTAIN)}, got {uncertain!r:.100}")
    states = {None: np.nan, -1: UNCERTAIN[uncertain], 0: 0.0, 1: 1.0}
    try:
        rows = [[states[study.get(finding)] for finding in findings] for study in labels]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a state must be 1, 0, -1 or None, got {clipped(error.args[0])}") from error
    return np.array(rows, dtype=float).reshape(len(rows), len(findings))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order; NaN for a single class.

    Args:
        scores: (N,). labels: (N,) of 1 and 0.
    """
    positive = labels == 1
    pairs = int(positive.sum()) * int((~positive).sum())
    if not pairs:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of tied scores, from 1
    rank_sum = mean_rank[place][positive].sum()
    return float((rank_sum - positive.sum() * (positive.sum() + 1) / 2) / pairs)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall steps, `sum (R_n - R_n-1) P_n` over distinct scores; NaN for a single class:
    without a negative it is 1 whatever the scores, without a positive it is not defined.

    Args:
        scores: (N,). labels: (N,) of 1 and 0.
    """
    if len(np.unique(labels)) < 2:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order] == 1)
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last place of each distinct score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


def confusion(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts as [[true negative, false positive], [false negative, true positive]] (rows the truth, columns the guess).

    Args:
        predicted: (N,) bool. labels: (N,) of 1 and 0, NaN not counted.
    """
    counted = ~np.isnan(labels)
    cells = np.stack([labels[counted] == 1, predicted[counted]]).astype(int)
    return np.bincount(cells[0] * 2 + cells[1], minlength=4).reshape(2, 2)


def best_f1_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each finding the threshold with the best F1; choose it on validation studies, not on those to be scored.

    Args:
        scores, labels: (N, C); NaN labels are not counted.

    Returns:
        (C,), halfway between two neighbouring scores; NaN where no study is positive.
    """
    chosen = np.full(scores.shape[1], np.nan)
    for column in range(scores.shape[1]):
        counted = ~np.isnan(labels[:, column])
        values, truth = scores[counted, column], labels[counted, column] == 1
        if not truth.any():
            continue
        order = np.argsort(-values, kind="stable")
        values, hits = values[order], np.cumsum(truth[order])
        last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
        f1 = 2 * hits[last] / (last + 1 + hits[-1])
        best = last[np.argmax(f1)]
        below = values[best + 1] if best + 1 < len(values) else values[best] - 1
        chosen[column] = (values[best] + below) / 2
    return chosen


def roc_curve(scores: np.ndarray, labels: np.ndarray) -> dict[str, list[float] | float]:
    """The ROC curve's corners `fpr` and `tpr`, from (0, 0) to (1, 1), and its `auc`; both empty for a single class.

    Args:
        scores: (N,). labels: (N,), NaN not counted.
    """
    counted = ~np.isnan(labels)
    values, truth = scores[counted], labels[counted] == 1
    area = auc(values, labels[counted])
    if truth.all() or not truth.any():
        return {"fpr": [], "tpr": [], "auc": area}
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    hits, misses = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    return {"fpr": [0.0, *(misses / misses[-1]).tolist()], "tpr": [0.0, *(hits / hits[-1]).tolist()], "auc": area}


def finding_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    findings: Sequence[str],
    *,
    thresholds: float | Sequence[float] | np.ndarray = 0.5,
) -> dict[str, float]:
    """Every measure of every finding, `auc/<finding>` and so on, and the mean of each, `mean_auc` and so on.

    Args:
        scores: (N, C), the greater the more likely present; any scale.
        labels: (N, C) of 1, 0 and NaN (not labelled), as from `label_matrix`.
        findings: C names.
        thresholds: above which a score says present; one for all or one each; a NaN leaves the finding's accuracy,
            precision, recall and F1 undefined.

    Returns:
        The measures, with `n/<finding>`, `positives/<finding>` and `negatives/<finding>` beside them. The means are
        over the findings with both classes: `mean_n` says how many those are.

    Raises:
        ValueError: shapes that do not fit, scores that are not numbers, labels other than 1, 0 and NaN.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    if scores.ndim != 2 or scores.shape != labels.shape or scores.shape[1] != len(findings):
        raise ValueError(
            f"scores and labels must be (studies, findings) with {len(findings)} findings, "
            f"got {scores.shape} and {labels.shape}"
        )
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"the score of {findings[column]!r:.100} in row {row} is {scores[row, column]}")
    strange = labels[~np.isnan(labels) & (labels != 0) & (labels != 1)]
    if strange.size:
        raise ValueError(
            f"labels are 1, 0 or NaN, found {strange[0]}; `label_matrix` says what uncertain ones count as"
        )
    limits = np.broadcast_to(np.asarray(thresholds, dtype=float), (len(findings),))

    result: dict[str, float] = {}
    for column, name in enumerate(findings):
        counted = ~np.isnan(labels[:, column])
        values, truth = scores[counted, column], labels[counted, column]
        cells = confusion(values > limits[column], truth)
        result |= {f"auc/{name}": auc(values, truth), f"ap/{name}": average_precision(values, truth)}
        result |= {
            f"{kind}/{name}": float("nan") if np.isnan(limits[column]) else value
            for kind, value in _from_cells(cells).items()
        }
        counts = {"n": len(truth), "positives": int(truth.sum()), "negatives": int((truth == 0).sum())}
        result |= {f"{kind}/{name}": count for kind, count in counts.items()}
    both = [name for name in findings if result[f"positives/{name}"] and result[f"negatives/{name}"]]
    for kind in KINDS:
        defined = [result[f"{kind}/{name}"] for name in both if not np.isnan(result[f"{kind}/{name}"])]
        result[f"mean_{kind}"] = float(np.mean(defined)) if defined else float("nan")
    return result | {"mean_n": len(both)}


def findings_protocol(scores: Mapping[str, float], findings: Sequence[str]) -> str:
    """`PROTOCOL` with what these scores rest on: how many findings the means are over, and how many studies each has.

    Args:
        scores: what `finding_scores` gave.
    """
    counts = {name: (scores[f"positives/{name}"], scores[f"negatives/{name}"]) for name in findings}
    both = [name for name, pair in counts.items() if all(pair)]
    text = f"{PROTOCOL}; means over {len(both)} of {len(findings)} findings"
    if both:
        text += ", present/absent: " + ", ".join(f"{name} {counts[name][0]}/{counts[name][1]}" for name in both)
    few = [name for name in both if min(counts[name]) < FEW]
    if few:
        text += f"; fewer than {FEW} of a class, so little is known of {', '.join(few)}"
    return text


def _from_cells(cells: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of one finding's confusion counts; NaN where nothing is divided by nothing."""
    (true_negative, false_positive), (false_negative, true_positive) = cells.tolist()

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    positives = true_positive + false_negative
    return {
        "accuracy": share(true_positive + true_negative, int(cells.sum())),
        "precision": share(true_positive, true_positive + false_positive),
        "recall": share(true_positive, positives),
        # without a positive study there is nothing to find, whatever was guessed
        "f1": share(2 * true_positive, 2 * true_positive + false_positive + false_negative)
        if positives
        else float("nan"),
    }


class Metric(InMemory, evaluate.Metric):
    """`compute(predictions=scores, references=labels, findings=names, thresholds=0.5)`, as in `finding_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=finding_scores.__doc__,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(
        self,
        predictions: Sequence,
        references: Sequence,
        findings: Sequence[str] | None = None,
        thresholds: float | Sequence[float] = 0.5,
    ) -> dict[str, float]:
        scores, labels = (
            numbers(side, rows).astype(float)
            for side, rows in (("predictions", predictions), ("references", references))
        )
        names = findings or [str(column) for column in range(scores.shape[-1])]
        return finding_scores(scores, labels, names, thresholds=thresholds)
