"""ReXrank's columns, with intervals and trivial baselines beside them, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_medvlm.evaluation.base import Scores
from hf_medvlm.metrics.clinical import MISSING

COLUMNS = {
    "1/RadCliQ-v1": ("radcliq_v1_reciprocal", "radcliq"),
    "BLEU-2": ("bleu2_rexrank", "bleu2_rexrank"),
    "BERTScore": ("bertscore", "bertscore"),
    "SembScore": ("sembscore", "sembscore"),
    "RadGraph": ("radgraph_rexrank", "radgraph"),
    "RaTEScore": ("ratescore", "ratescore"),
    "GREEN-like": ("judge_green", "judge_green"),
}
"""Heading -> (name of our score, clinical metric that gives it). The first one ranks; the last one is the leaderboard's
GREEN only where its own model and prompt judge, which ours is not."""
METRICS = tuple(metric for _, metric in COLUMNS.values())


def leaderboard(scores: Scores, name: str) -> str:
    """The columns as a text table: the system, its intervals, then each baseline; and why a column is empty.

    Args:
        name: of the system, for its row.
    """
    rows = [["", *COLUMNS]]
    rows.append([name, *(_number(scores.metrics.get(score)) for score, _ in COLUMNS.values())])
    spans = (scores.intervals.get(score) for score, _ in COLUMNS.values())
    rows.append(["95 % interval", *("-" if s is None else f"{s[0]:.3f} to {s[1]:.3f}" for s in spans)])
    for baseline, values in scores.baselines.items():
        rows.append([baseline.replace("_", " "), *(_number(values.get(score)) for score, _ in COLUMNS.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    missing = scores.figures.get(MISSING, {})
    for heading, (score, metric) in COLUMNS.items():
        if score not in scores.metrics:
            lines.append(f"no {heading}: {missing.get(metric, 'undefined')}")
    return "\n".join(lines)


def rexrank_records(
    records: Mapping[str, Any] | None, predictions: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """ReXrank's JSON, study by study: what the record held already, its report, and `model_prediction`.

    Args:
        records: of the file that was read, None where it was another kind. predictions: lines of predictions.jsonl.
    """
    return {
        line["study_id"]: {"report": line["reference"]}
        | dict((records or {}).get(line["study_id"], {}))
        | {"model_prediction": line["prediction"]}
        for line in predictions
    }


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
