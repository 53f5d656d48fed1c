"""RadCliQ-v1: the number of errors that a radiologist would find in a report, foretold from four metrics.

Yu et al. 2023 (doi 10.1016/j.patter.2023.100802): a linear model of RadGraph F1, BERTScore, CheXbert's embedding
similarity and BLEU-2, each standardised. Scaler and weights are those of rajpurkarlab/CXR-Report-Metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import WeightsInFolder
from hf_medvlm.metrics.bleu import bleu_counts, coco_bleu
from hf_medvlm.metrics.clinical import bertscore, chexbert, radgraph
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs

# RadGraph F1, BERTScore, embedding similarity, BLEU-2
MEAN = np.array([0.53792312, 0.61757256, 0.76479421, 0.44738335])
SCALE = np.array([0.30282584, 0.22430938, 0.25394391, 0.29892717])
WEIGHTS = np.array([-3.77083683e-01, -3.70300100e-01, -2.52616218e-01, 4.31504841e-12])
INTERCEPT = 2.46655256e-10
PROTOCOL = (
    "RadCliQ-v1 from RadGraph F1 (mean of entity and relation F1), BERTScore (IDF on), CheXbert's embedding similarity "
    "and BLEU-2, mean over studies; lower is better"
)
RECIPROCAL = f"1 / the mean of RadCliQ-v1 over studies, the leaderboards' column; {PROTOCOL}"


def radcliq_v1(
    radgraph_f1: np.ndarray, bertscore_f1: np.ndarray, similarity: np.ndarray, bleu2: np.ndarray
) -> np.ndarray:
    """RadCliQ-v1 of each report, (N,); every argument (N,)."""
    columns = np.column_stack([radgraph_f1, bertscore_f1, similarity, bleu2])
    return (columns - MEAN) / SCALE @ WEIGHTS + INTERCEPT


def score(
    predictions: Sequence[str], references: Sequence[str], weights: str | Path | None, device: str | None = None
) -> ClinicalResult:
    """`radcliq_v1` (lower is better) and `radcliq_v1_reciprocal` (higher is better), with what they are made of.

    Raises:
        MissingWeights: what one of its parts needs is not there; the message says whose.
    """
    check_pairs(predictions, references)
    parts = ClinicalResult()
    for part in (
        chexbert.score(predictions, references, weights, device),
        bertscore.score(predictions, references, weights, device, ["bertscore_idf"]),
        radgraph.score(predictions, references, weights, device),
    ):
        for kept in ("values", "per_study", "facts"):
            getattr(parts, kept).update(getattr(part, kept))
    return combine(parts, predictions, references)


def combine(parts: ClinicalResult, predictions: Sequence[str], references: Sequence[str]) -> ClinicalResult:
    """RadCliQ-v1 from scores of single studies that were computed before; `parts` with it added."""
    pairs = [(p.lower().split(), r.lower().split()) for p, r in zip(predictions, references, strict=True)]
    counts = np.array([bleu_counts(p, [r]) for p, r in pairs]).reshape(-1, 11)
    bleu2 = coco_bleu(counts, order=2)  # its weight is 4e-12
    graphs, bert, labels = (
        np.array(parts.per_study[name]) for name in ("radgraph_rexrank", "bertscore_idf", "sembscore")
    )
    values = radcliq_v1(graphs, bert, labels, bleu2)
    mean = values.mean() if len(values) else float("nan")
    parts.add("radcliq_v1", mean, PROTOCOL, values, better="lower", unit="errors, standardised")
    parts.add("radcliq_v1_reciprocal", 1 / mean if mean else float("nan"), RECIPROCAL, unit="")
    return parts


class Metric(WeightsInFolder, evaluate.Metric):
    """`metrics.load("radcliq", weights=FOLDER).compute(predictions=texts, references=texts)`, as in `score`."""

    default_name = "radcliq"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.weights, self.device)
        names = ("radcliq_v1", "radcliq_v1_reciprocal")
        return {name: result.values[name] for name in names} | {"protocol": PROTOCOL}
