"""CIDEr-D of each study as pycocoevalcap's `cider_scorer.py` computes it. No files, no Java tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_medvlm.metrics.bleu import ORDER, ngrams

SIGMA = 6.0  # width, in tokens, of the length penalty
Gram = tuple[str, ...]


class _Document:
    """tf-idf weights of one text, their norm for each n, and its bigrams, whose count pycocoevalcap takes as length."""

    def __init__(self, grams: Sequence[Counter[Gram]], idf: dict[Gram, float], unseen: float) -> None:
        self.weights = [{gram: count * idf.get(gram, unseen) for gram, count in n.items()} for n in grams]
        self.norms = [math.sqrt(sum(weight * weight for weight in n.values())) for n in self.weights]
        self.length = grams[1].total()

    def similarity(self, reference: _Document) -> float:
        """Clipped cosine, the mean over n, less the penalty on another length."""
        total = 0.0
        for ours, theirs, a, b in zip(self.weights, reference.weights, self.norms, reference.norms, strict=True):
            dot = sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in ours.keys() & theirs.keys())
            total += dot / (a * b) if a * b else 0.0
        return total / ORDER * math.exp(-((self.length - reference.length) ** 2) / (2 * SIGMA**2))


class CiderCorpus:
    """Document frequencies of a set of studies, by which the reports of any studies are scored.

    Args:
        references: tokens of the references of each study; a study may have several.
    """

    def __init__(self, references: Sequence[Sequence[tuple[str, ...]]]) -> None:
        grams = {text: ngrams(text) for several in references for text in several}  # normal reports repeat
        frequency: Counter[Gram] = Counter()
        for several in references:
            frequency.update({gram for text in several for n in grams[text] for gram in n})
        self.unseen = math.log(len(references)) if references else 0.0
        self.idf = {gram: self.unseen - math.log(count) for gram, count in frequency.items()}

    def score(
        self, candidates: Sequence[tuple[str, ...]], references: Sequence[Sequence[tuple[str, ...]]]
    ) -> np.ndarray:
        """Score of each study, (N,), from 0 to 10."""
        texts = {*candidates, *(text for several in references for text in several)}
        documents = {text: _Document(ngrams(text), self.idf, self.unseen) for text in texts}
        scores = [
            sum(documents[candidate].similarity(documents[text]) for text in several) / len(several)
            for candidate, several in zip(candidates, references, strict=True)
        ]
        return 10 * np.array(scores, dtype=float)


def cider(candidates: Sequence[tuple[str, ...]], references: Sequence[Sequence[tuple[str, ...]]]) -> np.ndarray:
    """Score of each study, (N,), from 0 to 10; the corpus score is the mean.

    Document frequencies come from the references given, so a study's score depends on the studies it stands among; with
    one study alone every n-gram is in every document, and the score is 0, as in pycocoevalcap.

    Args:
        candidates, references: tokens of each study; a study may have several references.

    Reference: Vedantam et al. 2015, arXiv 1411.5726; CIDEr-D's clipping and Gaussian penalty.
    """
    return CiderCorpus(references).score(candidates, references)
