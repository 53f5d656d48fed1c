"""Sentence pairs: scores against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hf_medvlm.metrics.sentence_pairs import sentence_pair_scores


def test_scores_equal_counting_by_hand():
    similarities, same = np.array([0.9, 0.6, 0.4, 0.5, -0.2]), np.array([True, True, True, False, False])
    scores = sentence_pair_scores(similarities, same)
    assert scores["accuracy"] == pytest.approx(4 / 5)  # 0.4 is a paraphrase below the threshold; 0.5 is not above it
    assert scores["auc"] == pytest.approx(5 / 6)


def test_one_kind_alone_has_no_auc():
    assert np.isnan(sentence_pair_scores(np.array([0.1, 0.9]), np.array([True, True]))["auc"])


@pytest.mark.parametrize("shape", [(0,), (2, 2), (3,)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="one similarity a sentence pair"):
        sentence_pair_scores(np.zeros(shape), np.zeros(2, dtype=bool) if shape == (3,) else np.zeros(shape, dtype=bool))
