"""BLEU from additive counts: of the corpus as `evaluate`, sacreBLEU and COCO define it, and of one study.

The counts of a corpus are the sum of its studies', so that a bootstrap need only add rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEUScore

ORDER = 4
# Columns of the counts: candidate length, shortest and closest reference length, matches and candidates for n = 1..4.
LENGTH, SHORTEST, CLOSEST, MATCHES, CANDIDATES = 0, 1, 2, slice(3, 3 + ORDER), slice(3 + ORDER, 3 + 2 * ORDER)
COLUMNS = 3 + 2 * ORDER


def ngrams(tokens: Sequence[str]) -> list[Counter[tuple[str, ...]]]:
    """The n-grams of a text with their counts, for n = 1 to 4."""
    return [Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for n in range(1, ORDER + 1)]


def bleu_counts(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts of one study, (11,): see the columns above.

    An n-gram matches at most as often as it stands in the reference that has it most.
    """
    most = ngrams(references[0])
    for reference in references[1:]:
        most = [before | now for before, now in zip(most, ngrams(reference), strict=True)]
    counts, length, lengths = np.zeros(COLUMNS), len(candidate), [len(reference) for reference in references]
    counts[LENGTH], counts[SHORTEST] = length, min(lengths)
    counts[CLOSEST] = min((abs(other - length), other) for other in lengths)[1]
    counts[MATCHES] = [
        sum(min(grams[gram], there[gram]) for gram in grams.keys() & there.keys())
        for grams, there in zip(ngrams(candidate), most, strict=True)
    ]
    counts[CANDIDATES] = [max(length - n, 0) for n in range(ORDER)]
    return counts


def _geometric_mean(precisions: np.ndarray, order: int) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.exp(np.log(precisions[:, :order]).mean(axis=1))


def _brevity_penalty(length: np.ndarray, reference: np.ndarray) -> np.ndarray:
    ratio = np.divide(reference, length, out=np.full_like(length, np.inf), where=length > 0)
    return np.exp(np.minimum(0.0, 1.0 - ratio))


def _precisions(counts: np.ndarray) -> np.ndarray:
    matches, candidates = counts[:, MATCHES], counts[:, CANDIDATES]
    return np.divide(matches, candidates, out=np.zeros_like(matches), where=candidates > 0)


def corpus_bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU-`order` of `evaluate`'s bleu (tensorflow/nmt `bleu.py`, unsmoothed), of (R, 11) summed counts -> (R,).

    The reference length is the shortest reference's; no candidate token at all gives 0.
    """
    penalty = _brevity_penalty(counts[:, LENGTH], counts[:, SHORTEST])
    return _geometric_mean(_precisions(counts), order) * penalty


def coco_bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU-`order` of pycocoevalcap's `bleu_scorer.py`, with its closest reference length and its tiny constants."""
    precisions = (counts[:, MATCHES] + 1e-15) / (counts[:, CANDIDATES] + 1e-9)
    ratio = (counts[:, LENGTH] + 1e-15) / (counts[:, CLOSEST] + 1e-9)
    with np.errstate(over="ignore", under="ignore"):
        return _geometric_mean(precisions, order) * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))


def _sacre(row: np.ndarray) -> BLEUScore:
    from sacrebleu.metrics import BLEU

    return BLEU.compute_bleu(
        correct=row[MATCHES].astype(int).tolist(),
        total=row[CANDIDATES].astype(int).tolist(),
        sys_len=int(row[LENGTH]),
        ref_len=int(row[CLOSEST]),
        smooth_method="exp",
    )


def sacre_bleu(counts: np.ndarray) -> np.ndarray:
    """sacreBLEU's corpus score / 100: closest reference length, zero matches smoothed exponentially (Post 2018)."""
    return np.array([_sacre(row).score for row in counts]) / 100


def sacre_bleu_details(sums: np.ndarray) -> dict[str, Any]:
    """The other keys of `evaluate`'s sacrebleu, from the summed counts (11,)."""
    result = _sacre(sums)
    return {name: getattr(result, name) for name in ("counts", "totals", "precisions", "bp", "sys_len", "ref_len")}


def sentence_bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-4 of single studies, (N, 11) -> (N,), add-one smoothed (Lin and Och 2004, ORANGE)."""
    precisions = (counts[:, MATCHES] + 1) / (counts[:, CANDIDATES] + 1)
    return _geometric_mean(precisions, ORDER) * _brevity_penalty(counts[:, LENGTH], counts[:, SHORTEST])
