"""Two scores of papers and leaderboards that need no weights: temporal F1, and BLEU-2 as ReXrank computes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import InMemory, text_pairs_info
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs

TEMPORAL_WORDS = frozenset(
    """bigger change cleared constant decrease decreased decreasing elevated elevation enlarged enlargement enlarging
    expanded greater growing improved improvement improving increase increased increasing larger new persistence
    persistent persisting progression progressive reduced removal resolution resolved resolving smaller stability stable
    stably unaltered unchanged unfolded worse worsen worsened worsening""".split()
)
"""Words of change: Bannur et al. 2023, BioViL-T (arXiv 2301.04558), as Libra's temporal F1 (arXiv 2411.19378) uses."""
TEMPORAL = (
    "F1 over the words of change that both texts hold, 1 where neither holds one and 0 where only the prediction does, "
    "mean over studies; Libra's entity recogniser adds nothing to these words and is left out"
)
BLEU2 = (
    "BLEU-2 as ReXrank: lower case, cut at spaces and before full stops, weights 1/2 and 1/2, epsilon smoothing (0.1, "
    "nltk's method 1, as in fast-bleu), mean over studies"
)
_WORD = re.compile(r"\b(" + "|".join(sorted(TEMPORAL_WORDS)) + r")\b")


def temporal_words(text: str) -> set[str]:
    """The words of change in a text, lower case; dashes and underscores part words."""
    plain = re.sub(r"[^\w\s.,:;()]", "", re.sub(r"[_-]+|\n+", " ", text))
    return set(_WORD.findall(plain.lower()))


def temporal_f1(prediction: str, reference: str) -> float:
    """F1 of the two sets of words of change; 1 where both are empty."""
    first, second = temporal_words(prediction), temporal_words(reference)
    if not first and not second:
        return 1.0
    return 2 * len(first & second) / (len(first) + len(second))


def bleu2_rexrank(prediction: str, reference: str) -> float:
    """BLEU-2 of one report as rajpurkarlab/CXR-Report-Metric prepares and computes it."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    tokens = [[word for word in text.lower().replace(".", " .").split(" ") if word] for text in (prediction, reference)]
    if not all(tokens):
        return 0.0
    smooth = SmoothingFunction(epsilon=0.1).method1
    return float(sentence_bleu([tokens[1]], tokens[0], weights=(0.5, 0.5), smoothing_function=smooth))


def score(predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> ClinicalResult:
    """`temporal_f1` and `bleu2_rexrank`, those of `names`, means over studies."""
    check_pairs(predictions, references)
    result = ClinicalResult()
    for name, one, how in (("temporal_f1", temporal_f1, TEMPORAL), ("bleu2_rexrank", bleu2_rexrank, BLEU2)):
        if name in names:
            values = [one(*pair) for pair in zip(predictions, references, strict=True)]
            result.add(name, np.mean(values) if values else np.nan, how, values)
    return result


class Metric(InMemory, evaluate.Metric):
    """`metrics.load("temporal_f1")` or `("bleu2_rexrank")`; `compute(predictions=texts, references=texts)`."""

    def __init__(self, config_name: str = "temporal_f1", **options: Any) -> None:
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return text_pairs_info(__doc__)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, [self.config_name])
        return result.values | {"protocol": result.facts[self.config_name].protocol}
