"""Grounding metrics against values worked out by hand and a slow version."""

import math

import numpy as np
import pytest

from hf_medvlm import metrics
from hf_medvlm.metrics.grounding import box_mask, grounding_scores, phrase_scores


def naive_scores(heat_map, mask, threshold):
    """Pixel by pixel, as the definitions read."""
    inside, outside, hit, marks, truth = [], [], 0, 0, 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            value, here = heat_map[row, column], mask[row, column]
            if not math.isnan(value):
                (inside if here else outside).append(value)
            marked = not math.isnan(value) and value > threshold
            hit, marks, truth = hit + (marked and here), marks + marked, truth + here
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    var = lambda values: mean([(v - mean(values)) ** 2 for v in values])  # noqa: E731
    return {
        "cnr": (mean(inside) - mean(outside)) / math.sqrt(var(inside) + var(outside)),
        "iou": hit / (marks + truth - hit),
        "dice": 2 * hit / (marks + truth),
        "mask_precision": hit / marks,
        "mask_recall": hit / truth,
    }


def test_measures_equal_the_pixel_by_pixel_version():
    rng = np.random.default_rng(0)
    heat_map, mask = rng.uniform(-1, 1, (9, 7)), box_mask([(1, 2, 3, 4), (5, 0, 2, 2)], 7, 9)
    heat_map[:, 0] = np.nan
    heat_map[3, 2] = np.nan
    scores = phrase_scores(heat_map, mask, thresholds=(0.1, 0.6), mask_threshold=0.25)
    slow = naive_scores(heat_map, mask, 0.25)
    for name in ("cnr", "dice", "mask_precision", "mask_recall"):
        assert scores[name] == pytest.approx(slow[name])
    ious = [naive_scores(heat_map, mask, threshold)["iou"] for threshold in (0.1, 0.6)]
    assert scores["miou"] == pytest.approx(np.mean(ious))


def test_contrast_is_signed_with_the_published_absolute_one_beside_it():
    mask = box_mask([(0, 0, 2, 4)], 4, 4)
    heat_map = np.where(mask, -1.0, 1.0) + np.linspace(0, 0.1, 16).reshape(4, 4)
    scores = phrase_scores(heat_map, mask)
    assert scores["cnr"] == -scores["cnr_absolute"] < 0
    assert phrase_scores(-heat_map, mask)["cnr"] == pytest.approx(scores["cnr_absolute"])


def test_a_box_covers_its_pixels_and_never_none():
    assert box_mask([(1, 2, 2, 1)], 4, 4).nonzero()[0].tolist() == [2, 2]
    assert box_mask([(2.6, 1.1, 0.2, 0.3)], 4, 4).nonzero() == (np.array([1]), np.array([2]))
    with pytest.raises(ValueError, match="outside the image of 4 x 3"):
        box_mask([(4, 0, 1, 1)], 4, 3)


def test_the_highest_point_is_shared_among_ties():
    mask = box_mask([(0, 0, 1, 2)], 2, 2)
    assert phrase_scores(np.array([[0.0, 1], [0, 0]]), mask)["pointing_game"] == 0
    assert phrase_scores(np.array([[1.0, 1], [0, 0]]), mask)["pointing_game"] == 0.5
    assert phrase_scores(np.array([[1.0, np.nan], [0, np.nan]]), mask)["pointing_game"] == 1


def test_what_is_undefined_is_nan_and_left_out_of_the_mean():
    mask = box_mask([(0, 0, 2, 1)], 2, 2)
    flat, sloped = np.zeros((2, 2)), np.array([[1.0, 0.9], [0.1, 0]])
    assert math.isnan(phrase_scores(flat, mask)["cnr"])
    assert math.isnan(phrase_scores(flat, mask)["mask_precision"])
    assert math.isnan(phrase_scores(sloped, np.ones((2, 2), bool))["cnr"])
    both = grounding_scores([flat, sloped], [mask, mask])
    assert both["cnr"] == phrase_scores(sloped, mask)["cnr"] and both["n"] == 2
    assert phrase_scores(np.full((2, 2), np.nan), mask)["mask_recall"] == 0


def test_means_by_category():
    mask, rng = box_mask([(0, 0, 2, 2)], 4, 4), np.random.default_rng(1)
    maps = [rng.normal(size=(4, 4)) for _ in range(3)]
    scores = grounding_scores(maps, [mask] * 3, categories=["Edema", "Edema", "Pneumonia"])
    assert scores["cnr/Edema"] == grounding_scores(maps[:2], [mask] * 2)["cnr"]
    assert (scores["n/Edema"], scores["n/Pneumonia"]) == (2, 1)
    with pytest.raises(ValueError, match="2 categories for 3 phrases"):
        grounding_scores(maps, [mask] * 3, categories=["a", "b"])


@pytest.mark.parametrize(
    ("shape", "match"), [((4, 3), r"mask of \(4, 3\) does not fit a heat map of \(3, 4\)"), ((3, 4), "without a pixel")]
)
def test_a_mask_that_cannot_be(shape, match):
    with pytest.raises(ValueError, match=match):
        phrase_scores(np.zeros((3, 4)), np.zeros(shape, bool))


def test_the_metric_gives_the_functions_values():
    rng = np.random.default_rng(2)
    maps = [rng.uniform(size=(3, 4)), rng.uniform(size=(5, 2))]
    masks = [box_mask([(0, 0, 2, 2)], 4, 3), box_mask([(1, 1, 1, 3)], 2, 5)]
    scores = metrics.load("grounding").compute(predictions=maps, references=masks, thresholds=(0.5,))
    assert scores == pytest.approx(grounding_scores(maps, masks, thresholds=(0.5,)))
