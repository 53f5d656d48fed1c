"""CIDEr-D against pycocoevalcap's definition written out with dictionaries."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from hf_medvlm.metrics.cider import cider

WORDS = "heart lungs clear no effusion left right normal size is".split()


def slow_cider(candidates, references):
    grams = lambda words, n: Counter(words[i : i + n] for i in range(len(words) - n + 1))  # noqa: E731
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        total = 0.0
        for text in texts:
            for n in range(1, 5):

                def weights(words, n=n):
                    having = lambda gram: sum(any(gram in grams(t, n) for t in r) for r in references)  # noqa: E731
                    idf = {g: math.log(len(references)) - math.log(max(1, having(g))) for g in grams(words, n)}
                    return {gram: count * idf[gram] for gram, count in grams(words, n).items()}

                a, b = weights(candidate), weights(text)
                norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
                if norms:
                    gap = max(len(candidate) - 1, 0) - max(len(text) - 1, 0)
                    clipped = sum(min(v, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, v in a.items())
                    total += clipped / norms * math.exp(-gap * gap / 72) / 4
        scores.append(10 * total / len(texts))
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_every_study_scores_as_pycocoevalcap_has_it(seed):
    rng = random.Random(seed)
    text = lambda: tuple(rng.choices(WORDS, k=rng.choice([0, 1, 2, 5, 12])))  # noqa: E731
    candidates = [text() for _ in range(12)]
    references = [[text() for _ in range(rng.randint(1, 3))] for _ in range(12)]
    assert cider(candidates, references) == pytest.approx(slow_cider(candidates, references), abs=1e-9)


def test_one_study_alone_has_no_document_frequencies():
    assert cider([("a", "b")], [[("a", "b")]]).tolist() == [0.0]
    assert cider([], []).shape == (0,)


def test_the_same_text_scores_ten_among_others():
    texts = [tuple("abcd"), tuple("efgh"), tuple("ijkl")]
    assert np.allclose(cider(texts, [[text] for text in texts]), 10)
