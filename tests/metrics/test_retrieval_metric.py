"""Retrieval against a naive full-matrix twin that averages over every order of the tied rows."""

import itertools

import numpy as np
import pytest

from hf_medvlm import metrics
from hf_medvlm.metrics.retrieval import CUTOFFS, retrieval_scores


def naive_ranks(scores: np.ndarray, matching: np.ndarray) -> list[list[int]]:
    """For each query the rank of its first match under every order of the gallery that the scores allow."""
    ranks = []
    for row, right in zip(scores, matching, strict=True):
        best = row[right].max()
        above, tied = int((row > best + 1e-9).sum()), np.flatnonzero(np.abs(row - best) <= 1e-9)
        orders = itertools.permutations(right[tied])
        ranks.append([above + 1 + order.index(True) for order in orders])
    return ranks


def naive(images: np.ndarray, texts: np.ndarray, groups) -> dict[str, float]:
    matching = np.asarray(groups)[:, None] == np.asarray(groups)[None]
    result = {}
    for way, scores in (("i2t", images @ texts.T), ("t2i", texts @ images.T)):
        ranks = naive_ranks(scores, matching)
        for k in CUTOFFS:
            result[f"{way}_recall@{k}"] = np.mean([np.mean(np.array(r) <= k) for r in ranks])
        result[f"{way}_median_rank"] = np.median([np.mean(r) for r in ranks])
        result[f"{way}_mrr"] = np.mean([np.mean(1 / np.array(r)) for r in ranks])
    return result


@pytest.fixture
def planted() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Fifty vectors with planted equal rows within groups and across them, and groups of unequal rows."""
    rng = np.random.default_rng(3)
    images, texts = rng.normal(size=(2, 50, 8))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True) * 0.5 + images * 0.5
    texts[[4, 17, 33]] = texts[9]
    images[[20, 21]] = images[22]
    texts[40:44] = texts[9]
    groups = [f"g{i}" for i in range(50)]
    for index, group in ((4, "g9"), (17, "g9"), (21, "g20"), (45, "g2"), (46, "g2")):
        groups[index] = group
    return images, texts, groups


@pytest.mark.parametrize("block", [1, 3, 7, 50, 4096])
def test_equals_the_naive_twin_at_any_block_size(planted, block):
    expected = naive(*planted)
    result = retrieval_scores(*planted, block=block)
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert result["mean_recall"] == pytest.approx(
        np.mean([result[f"{way}_recall@{k}"] for way in ("i2t", "t2i") for k in CUTOFFS])
    )
    assert (result["gallery_size"], result["unique_texts"]) == (50, 45)


def test_the_order_of_the_rows_changes_nothing(planted):
    images, texts, groups = planted
    order = np.random.default_rng(0).permutation(50)
    shuffled = retrieval_scores(images[order], texts[order], [groups[i] for i in order])
    assert shuffled == pytest.approx(retrieval_scores(*planted), abs=1e-12)


@pytest.mark.parametrize("width", [1, 512])
def test_constant_embeddings_score_chance_exactly(width):
    constant = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32).repeat(97, axis=0)
    groups = [0, 0, 0, *range(1, 95)]
    result = retrieval_scores(constant, constant, groups, block=10)
    for way in ("i2t", "t2i"):
        for name in (*(f"recall@{k}" for k in CUTOFFS), "median_rank", "mrr"):
            assert result[f"{way}_{name}"] == result[f"chance_{name}"]
    # by hand: 94 rows have one match in 97, three have three
    assert result["chance_recall@1"] == pytest.approx((94 / 97 + 3 * 3 / 97) / 97)
    assert result["ceiling_recall@1"] == 1  # perfect embeddings find a row of the same group first


def test_a_perfect_model_with_duplicates_finds_everything():
    eye = np.eye(6)[[0, 1, 2, 3, 4, 4]]
    assert retrieval_scores(eye, eye, [0, 1, 2, 3, 4, 4])["mean_recall"] == 1.0
    strict = retrieval_scores(eye, eye)
    assert strict["i2t_recall@1"] == pytest.approx(5 / 6)  # the twins are found half the time each
    assert strict["i2t_mrr"] == pytest.approx((4 + 2 * 0.75) / 6)


def test_the_metric_takes_one_call_or_batches(planted):
    images, texts, groups = planted
    expected = retrieval_scores(images, texts, groups)
    assert metrics.load("retrieval").compute(predictions=images, references=texts, groups=groups) == expected
    metric = metrics.load("retrieval")
    for start in range(0, 50, 7):
        metric.add_batch(predictions=images[start : start + 7], references=texts[start : start + 7])
    assert metric.compute(groups=groups) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("images", "texts", "options", "match"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), {}, r"\(3, 2\) and \(4, 2\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, "N > 0"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"groups": [1, 2]}, "2 ids for 3 rows"),
        (np.zeros((3, 2)), np.array([[0, 0], [0, np.nan], [0, 0]]), {}, "text embedding of row 1"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"block": 0}, "block"),
    ],
)
def test_what_cannot_be_ranked_is_refused(images, texts, options, match):
    with pytest.raises(ValueError, match=match):
        retrieval_scores(images, texts, **options)
