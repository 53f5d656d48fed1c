"""Sentence similarity and natural language inference: do two sentences say the same, or contradict each other?

NumPy only. As BioViL and BioViL-T are tested (RadNLI, MS-CXR-T's sentence pairs): the cosine of two sentences'
embeddings, held against a threshold. Bannur et al. 2023 (arXiv 2301.04558), section 4.3; hi-ml-multimodal's own test
wants paraphrases above 0.5 and contradictions below.
"""

from __future__ import annotations

import numpy as np

from hf_medvlm.metrics.findings import auc

PUBLISHED_THRESHOLD = 0.5
PROTOCOL = (
    "accuracy: the share of sentence pairs on the right side of the threshold, paraphrases above it; AUC needs none "
    "and gives ties half"
)


def sentence_pair_scores(
    similarities: np.ndarray, same: np.ndarray, threshold: float = PUBLISHED_THRESHOLD
) -> dict[str, float]:
    """`accuracy` and `auc` of telling paraphrases from contradictions; AUC is NaN where one of the two is missing.

    Args:
        similarities: (N,), cosines. same: (N,), True for a paraphrase, False for a contradiction.
        threshold: a pair above it counts as a paraphrase.

    Raises:
        ValueError: there are no pairs, or `similarities` and `same` differ in length.
    """
    similarities, same = _checked(similarities, same)
    return {
        "accuracy": float(np.mean((similarities > threshold) == same)),
        "auc": auc(similarities, same.astype(float)),
    }


def _checked(similarities: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarities, same = np.asarray(similarities, dtype=float), np.asarray(same, dtype=bool)
    if similarities.ndim != 1 or similarities.shape != same.shape or not len(same):
        raise ValueError(
            f"one similarity a sentence pair is needed, and a label for each; got {similarities.shape} and {same.shape}"
        )
    return similarities, same
