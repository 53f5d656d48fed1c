"""Rewards by the words of two reports, and penalties of length and form. Need no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_medvlm.metrics.bleu import bleu_counts, coco_bleu
from hf_medvlm.metrics.cider import CiderCorpus
from hf_medvlm.metrics.tokens import clean, split_sentences, tokens_13a

Score = Callable[[Sequence[str], Sequence[str]], list[float]]
"""(N texts, their N references) -> N numbers."""


def bleu2_reward(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU-2 of each report, 13a tokens, not smoothed, from 0 to 1."""
    counts = [bleu_counts(tokens_13a(text), [tokens_13a(other)]) for text, other in zip(texts, references, strict=True)]
    return coco_bleu(np.array(counts), 2).tolist() if counts else []


def cider_reward(training_reports: Sequence[str]) -> Score:
    """CIDEr-D of each report divided by 10, from 0 to 1, with the document frequencies of the training reports.

    Those of the references at hand would make a report's reward depend on the studies it stands among.
    """
    corpus = CiderCorpus([[_words(report)] for report in training_reports])

    def score(texts: Sequence[str], references: Sequence[str]) -> list[float]:
        return (corpus.score([*map(_words, texts)], [[_words(other)] for other in references]) / 10).tolist()

    return score


def _words(text: str) -> tuple[str, ...]:
    return tuple(clean(text, "coco").split())


def length_penalty(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """Minus how much longer or shorter a report is than its reference, as a share of the reference's words; not below
    -1."""
    pairs = [(len(text.split()), max(len(other.split()), 1)) for text, other in zip(texts, references, strict=True)]
    return [-min(abs(ours - theirs) / theirs, 1.0) for ours, theirs in pairs]


def format_penalty(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """-1 for an empty report and for one that breaks off (its last character is none of . ! ? : ) "), else minus the
    share of its sentences that it has already written, from -1 to 0."""
    scores = []
    for text in texts:
        written = [sentence.strip().lower() for sentence in split_sentences(text)]
        broken = not written or text.rstrip()[-1] not in '.!?:)"'
        scores.append(-1.0 if broken else len(set(written)) / len(written) - 1.0)
    return scores


TEXTS: dict[str, Score] = {"bleu2": bleu2_reward, "length": length_penalty, "format": format_penalty}
"""Name of a reward -> (texts, references) -> one number a text."""
