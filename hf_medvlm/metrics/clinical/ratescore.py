"""RaTEScore through its own package and the user's folders; Zhao et al. 2024 (arXiv 2406.16845)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import WeightsInFolder
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs
from hf_medvlm.metrics.clinical.weights import MissingWeights, default_device, find_file, require_package

ENTITIES, SYNONYMS = "RaTE-NER-Deberta", "BioLORD-2023-C"
PROTOCOL = "RaTEScore (package RaTEScore, affinity matrix of long reports), mean over studies"


def locate(weights: str | Path | None) -> list[Path]:
    """The folders of its two models.

    Raises:
        MissingWeights: a folder or the package is not there.
    """
    require_package("RaTEScore", "RaTEScore")
    folders = [
        find_file(weights, (name, f"ratescore/{name}"), ("config.json",), f"RaTEScore's {name}").parent
        for name in (ENTITIES, SYNONYMS)
    ]
    if folders[0] == folders[1]:
        raise MissingWeights(f"RaTEScore: {ENTITIES} and {SYNONYMS} must lie in folders of these names in {weights}")
    return folders


def score(
    predictions: Sequence[str], references: Sequence[str], weights: str | Path | None, device: str | None = None
) -> ClinicalResult:
    """`ratescore`, from the folders `RaTE-NER-Deberta` and `BioLORD-2023-C` in `weights`.

    Raises:
        MissingWeights: a folder or the package is not there.
    """
    check_pairs(predictions, references)
    folders = locate(weights)
    try:
        from RaTEScore import RaTEScore
    except ImportError as error:
        raise MissingWeights(f"RaTEScore: its package cannot be imported ({error}); pip install RaTEScore") from error
    scorer = RaTEScore(
        bert_model=str(folders[0]), eval_model=str(folders[1]), use_gpu=default_device(device).type == "cuda"
    )
    values = scorer.compute_score(list(predictions), list(references))
    result = ClinicalResult()
    result.add("ratescore", np.mean(values) if len(values) else np.nan, PROTOCOL, values)
    return result


class Metric(WeightsInFolder, evaluate.Metric):
    """`metrics.load("ratescore", weights=FOLDER).compute(predictions=texts, references=texts)`, as in `score`."""

    default_name = "ratescore"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.weights, self.device)
        return result.values | {"protocol": PROTOCOL}
