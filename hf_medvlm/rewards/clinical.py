"""Rewards of scorers with weights, from the user's own folder: CheXbert and RadGraph. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLINICAL = ("chexbert", "sembscore", "radgraph")
KEPT = 1 << 14  # references whose reading is kept: the same ones come again in every epoch


def clinical_reward(name: str, weights: str | Path | None) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """(texts, references) -> one number a text, by a model that is loaded once.

    `chexbert`: F1 over the 14 findings of each report, uncertain as present; 1 where neither report has any.
    `sembscore`: cosine of CheXbert's embeddings. `radgraph`: mean of entity and relation F1, as ReXrank takes it.

    Raises:
        ValueError: the weights are not there or cannot be read; the message says what is missing where.
    """
    from hf_medvlm.metrics.clinical import chexbert, radgraph

    if name == "radgraph":
        annotate = _Remembered(radgraph.load_annotator(weights))
        return lambda texts, references: [
            radgraph.radgraph_f1(*pair)["radgraph_rexrank"]
            for pair in zip(annotate(texts), annotate(references), strict=True)
        ]
    labeller = chexbert.CheXbert(weights)
    read = _Remembered(lambda texts: list(zip(*labeller(texts), strict=True)))

    def score(texts: Sequence[str], references: Sequence[str]) -> list[float]:
        sides = [read(texts), read(references)]
        if name == "sembscore":
            first, second = (np.array([embedding for _, embedding in side]) for side in sides)
            return chexbert.embedding_similarity(first, second).tolist()
        positive = [[np.isin(classes, (chexbert.PRESENT, chexbert.UNCERTAIN)) for classes, _ in side] for side in sides]
        return [_f1(ours, theirs) for ours, theirs in zip(*positive, strict=True)]

    return score


def _f1(ours: np.ndarray, theirs: np.ndarray) -> float:
    size = int(ours.sum() + theirs.sum())
    return 2 * int((ours & theirs).sum()) / size if size else 1.0


class _Remembered:
    """Reads each different text once, and keeps what it gave."""

    def __init__(self, read: Callable[[Sequence[str]], list[Any]]) -> None:
        self.read, self.kept = read, dict[str, Any]()

    def __call__(self, texts: Sequence[str]) -> list[Any]:
        new = [text for text in dict.fromkeys(texts) if text not in self.kept]
        if len(self.kept) + len(new) > KEPT:
            self.kept.clear()
            new = list(dict.fromkeys(texts))
        if new:
            self.kept.update(zip(new, self.read(new), strict=True))
        return [self.kept[text] for text in texts]
