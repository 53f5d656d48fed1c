"""BERTScore as two leaderboards of radiology reports compute it: distilroberta-base, layer 5, rescaled.

Zhang et al. 2020, "BERTScore" (arXiv 1904.09675). `bertscore` weighs all tokens alike but those of beginning and end,
as ReXrank does; `bertscore_idf` weighs them by how rare they are among the references, as RadEval's RadCliQ does.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import WeightsInFolder
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs
from hf_medvlm.metrics.clinical.weights import default_device, find_file, load_text_model

LAYER = 5
FOLDERS = ("distilroberta-base", "bertscore/distilroberta-base", "bertscore")
BASELINE = 0.8473319  # F of unrelated sentences in layer 5 of distilroberta-base (bert_score 0.3.13, its table of "en")
BASELINE_FILE = "rescale_baseline.tsv"
PROTOCOL = (
    "BERTScore F1 of distilroberta-base, layer 5, rescaled by its baseline {baseline}; {weights}; mean over studies"
)
PLAIN = "every token weighs the same, the first and the last special token nothing (IDF off, as ReXrank)"
WEIGHED = "tokens weighed by their inverse document frequency among the references (IDF on, as RadEval's RadCliQ)"


def locate(weights: str | Path | None) -> Path:
    """The encoder's folder.

    Raises:
        MissingWeights: it is not there.
    """
    return find_file(weights, FOLDERS, ("config.json",), "BERTScore (distilroberta-base)").parent


class BERTScorer:
    """Token embeddings of a RoBERTa-like encoder, cut after `LAYER` layers.

    Args:
        weights: folder of distilroberta-base as transformers saves it, or its parent; a file `rescale_baseline.tsv` in
            it (LAYER,P,R,F) takes the place of the published baseline.
        device, batch_size: where and how many texts at a time.

    Raises:
        MissingWeights, ValueError: the folder is not there, or cannot be loaded.
    """

    def __init__(self, weights: str | Path | None, device: str | None = None, batch_size: int = 64) -> None:
        from torch import nn

        folder = locate(weights)
        model, self.tokenizer = load_text_model(folder)
        layers = getattr(getattr(model, "encoder", None), "layer", None)
        if layers is None or len(layers) < LAYER:
            raise ValueError(f"{folder}: BERTScore needs a BERT-like encoder of at least {LAYER} layers")
        model.encoder.layer = nn.ModuleList(list(layers[:LAYER]))
        self.device, self.batch_size = default_device(device), batch_size
        self.model = model.to(self.device)
        self.baseline = _baseline(folder / BASELINE_FILE)

    def encode(self, text: str) -> list[int]:
        """Token ids with the special ones; a text longer than the model takes is cut at its end."""
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)
        return self.tokenizer.encode(text.strip(), add_special_tokens=True, truncation=True, max_length=limit)

    def embed(self, ids: Sequence[list[int]]) -> list[np.ndarray]:
        """(T, width) of each list of ids, rows of length 1."""
        import torch

        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        embedded: dict[int, np.ndarray] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            width = max(len(ids[i]) for i in chosen)
            padded = torch.full((len(chosen), width), self.tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(chosen):
                padded[row, : len(ids[i])], mask[row, : len(ids[i])] = torch.tensor(ids[i]), 1
            with torch.no_grad():
                states = self.model(padded.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
            states = torch.nn.functional.normalize(states.float(), dim=-1).cpu().numpy()
            embedded |= {i: states[row, : len(ids[i])] for row, i in enumerate(chosen)}
        return [embedded[i] for i in range(len(ids))]

    def __call__(self, predictions: Sequence[str], references: Sequence[str], idf: bool = False) -> np.ndarray:
        """(N,) rescaled F1 of each pair; a text without a token of its own has precision and recall 0."""
        texts = list(dict.fromkeys([*predictions, *references]))
        ids = [self.encode(text) for text in texts]
        place = {text: number for number, text in enumerate(texts)}
        states = self.embed(ids)
        weights = self._idf([ids[place[text]] for text in references]) if idf else None
        scores = [
            _f1(*(side for text in pair for side in (states[place[text]], self._weights(ids[place[text]], weights))))
            for pair in zip(predictions, references, strict=True)
        ]
        return (np.array(scores) - self.baseline) / (1 - self.baseline)

    def _idf(self, documents: Sequence[list[int]]) -> dict[int, float]:
        counts = Counter(token for document in documents for token in set(document))
        unseen = math.log(len(documents) + 1)
        return {token: math.log((len(documents) + 1) / (count + 1)) for token, count in counts.items()} | {-1: unseen}

    def _weights(self, ids: list[int], idf: dict[int, float] | None) -> np.ndarray:
        if idf is None:
            special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
            return np.array([0.0 if token in special else 1.0 for token in ids])
        return np.array([idf.get(token, idf[-1]) for token in ids])


def _f1(first: np.ndarray, first_weights: np.ndarray, second: np.ndarray, second_weights: np.ndarray) -> float:
    """F1 of greedy matching; NaN weights (all zero) and texts of two special tokens alone give 0."""
    similar = first @ second.T
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = float((similar.max(1) * (first_weights / first_weights.sum())).sum())
        recall = float((similar.max(0) * (second_weights / second_weights.sum())).sum())
        score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return score if math.isfinite(score) else 0.0


def _baseline(path: Path) -> float:
    if not path.is_file():
        return BASELINE
    with open(path, encoding="utf-8", newline="") as handle:
        rows = {row.get("LAYER"): row.get("F") for row in csv.DictReader(handle)}
    try:
        return float(rows[str(LAYER)])  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no number F for layer {LAYER}; expected lines LAYER,P,R,F") from error


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    weights: str | Path | None,
    device: str | None = None,
    names: Sequence[str] = ("bertscore", "bertscore_idf"),
) -> ClinicalResult:
    """`bertscore` and `bertscore_idf`, means over studies.

    Raises:
        MissingWeights, ValueError: as `BERTScorer`; and where the texts are not in pairs.
    """
    check_pairs(predictions, references)
    scorer, result = BERTScorer(weights, device), ClinicalResult()
    for name in names:
        values = scorer(predictions, references, idf=name == "bertscore_idf") if predictions else np.array([])
        how = PROTOCOL.format(baseline=scorer.baseline, weights=WEIGHED if name == "bertscore_idf" else PLAIN)
        result.add(name, values.mean() if len(values) else np.nan, how, values, unit="rescaled F1")
    return result


class Metric(WeightsInFolder, evaluate.Metric):
    """`metrics.load("bertscore", weights=FOLDER)` and `"bertscore_idf"`, as in `score`."""

    default_name = "bertscore"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.weights, self.device, [self.config_name])
        return result.values | {"protocol": result.facts[self.config_name].protocol}
