"""How well two texts agree on the 14 CheXpert findings: F1 of generated reports against reference reports.

The texts are labelled by the rules of `findings.py`, so this measures what a report says, not how it says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.language.findings import label_report
from hf_medvlm.language.tongues import not_english

PROTOCOL = (
    "both texts labelled by hf_medvlm.language.findings (rules); the 14 CheXpert findings, No Finding and Support "
    "Devices included; present and uncertain count as positive, absent and not mentioned as negative, as in F1CheXbert"
)


@dataclass
class FindingsF1:
    """What `findings_f1` returns; fractions, NaN where undefined."""

    metrics: dict[str, float]  # findings_f1_micro, findings_f1_macro
    per_finding: dict[str, dict[str, float]]  # CheXpert name -> precision, recall, f1, n (references that have it)
    per_study: list[float]  # F1 over the findings of each study
    sums: np.ndarray  # (N, 2): true positives, and (predicted + stated) / 2, of each study; micro F1 is their ratio
    sums_of_each: np.ndarray  # (N, 28): true positives of each finding, then (predicted + stated) / 2 of each
    protocol: dict[str, str]  # metric -> text


def precision_recall_f1(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Precision, recall and F1, (3,), of two boolean arrays of one shape; NaN where there is nothing to divide by."""
    hits = (predicted & true).sum()
    counts = np.array([predicted.sum(), true.sum(), (predicted.sum() + true.sum()) / 2])
    return np.divide(hits, counts, out=np.full(3, np.nan), where=counts > 0)


def findings_f1(predictions: Sequence[str], references: Sequence[str]) -> FindingsF1:
    """Micro and macro F1 over the findings of generated against reference texts (see `PROTOCOL`).

    Micro pools all findings of all studies; macro is the mean over the findings that either side has at all.

    Raises:
        ValueError: a different number of predictions and references.
    """
    if len(predictions) != len(references):
        raise ValueError(f"findings_f1 needs one reference a prediction, got {len(predictions)} and {len(references)}")
    language = not_english(references)
    language = f"; {language}" if language else ""
    predicted, true = _positives(predictions), _positives(references)
    table = {
        name: dict(zip(("precision", "recall", "f1"), map(float, precision_recall_f1(p, t)), strict=True))
        | {"n": int(t.sum())}
        for name, p, t in zip(CHEXPERT_14, predicted.T, true.T, strict=True)
    }
    defined = [row["f1"] for row in table.values() if not np.isnan(row["f1"])]
    return FindingsF1(
        metrics={
            "findings_f1_micro": float(precision_recall_f1(predicted, true)[2]),
            "findings_f1_macro": float(np.mean(defined)) if defined else float("nan"),
        },
        per_finding=table,
        per_study=[float(precision_recall_f1(p, t)[2]) for p, t in zip(predicted, true, strict=True)],
        sums=np.stack([(predicted & true).sum(1), (predicted.sum(1) + true.sum(1)) / 2], axis=1),
        sums_of_each=np.concatenate([predicted & true, (predicted.astype(float) + true) / 2], axis=1),
        protocol={
            "findings_f1_micro": f"{PROTOCOL}; all findings of all studies pooled{language}",
            "findings_f1_macro": f"{PROTOCOL}; mean over the findings that occur on either side{language}",
        },
    )


def macro_of_sums(sums: np.ndarray) -> np.ndarray:
    """(R, 28) sums of `FindingsF1.sums_of_each` -> (R,): mean F1 of the findings that occur; NaN where none does."""
    hits, counts = np.split(np.asarray(sums, dtype=float), 2, axis=1)
    each = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
    occur = (counts > 0).sum(1)
    return np.divide(each.sum(1), occur, out=np.full(len(each), np.nan), where=occur > 0)


def _positives(texts: Sequence[str]) -> np.ndarray:
    rows = [[state in (1, -1) for state in label_report(text).values()] for text in texts]
    return np.array(rows, dtype=bool).reshape(len(rows), len(CHEXPERT_14))
