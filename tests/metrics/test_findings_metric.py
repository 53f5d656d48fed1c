"""Finding scores against scikit-learn and by hand; the undefined is NaN and the unlabelled is not counted."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics import (
    roc_curve as sklearn_roc_curve,
)

from hf_medvlm import metrics
from hf_medvlm.metrics.findings import best_f1_thresholds, confusion, finding_scores, label_matrix, roc_curve

FINDINGS = ("Edema", "Pneumothorax", "Fracture")


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(200, 3)), 1)  # rounded: many ties
    labels = (scores + rng.normal(size=scores.shape) > 0.5).astype(float)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    return scores, labels


def test_every_measure_equals_scikit_learns(tables):
    scores, labels = tables
    result = finding_scores(scores, labels, FINDINGS, thresholds=[0.2, 0.0, -0.4])
    for column, (name, threshold) in enumerate(zip(FINDINGS, (0.2, 0.0, -0.4), strict=True)):
        counted = ~np.isnan(labels[:, column])
        values, truth = scores[counted, column], labels[counted, column]
        expected = {
            "auc": roc_auc_score(truth, values),
            "ap": average_precision_score(truth, values),
            "accuracy": accuracy_score(truth, values > threshold),
            "precision": precision_score(truth, values > threshold),
            "recall": recall_score(truth, values > threshold),
            "f1": f1_score(truth, values > threshold),
            "n": counted.sum(),
            "positives": truth.sum(),
        }
        assert {kind: result[f"{kind}/{name}"] for kind in expected} == pytest.approx(expected, abs=1e-12)
    assert result["mean_auc"] == pytest.approx(np.mean([result[f"auc/{name}"] for name in FINDINGS]))


def test_the_undefined_is_nan_and_left_out_of_the_mean():
    scores = np.array([[0.9, 0.9, 0.1], [0.1, 0.2, 0.2], [0.8, 0.3, 0.3]])
    labels = np.array([[1, 0, np.nan], [0, 0, np.nan], [1, 0, np.nan]])
    result = finding_scores(scores, labels, FINDINGS)
    assert result["auc/Edema"] == result["mean_auc"] == 1.0
    assert result["accuracy/Pneumothorax"] == pytest.approx(2 / 3) and result["precision/Pneumothorax"] == 0.0
    undefined = ["auc/Pneumothorax", "ap/Pneumothorax", "recall/Pneumothorax", "f1/Pneumothorax"]
    undefined += [f"{kind}/Fracture" for kind in ("auc", "ap", "accuracy", "precision", "recall", "f1")]
    assert all(np.isnan(result[name]) for name in undefined)
    assert (result["n/Fracture"], result["n/Pneumothorax"], result["positives/Pneumothorax"]) == (0, 3, 0)


def test_constant_scores_are_chance():
    labels = np.array([[1.0], [0.0], [0.0], [1.0]])
    result = finding_scores(np.zeros((4, 1)), labels, ["Edema"])
    assert result["auc/Edema"] == 0.5 and result["ap/Edema"] == 0.5


def test_not_mentioned_is_not_absent_and_uncertain_follows_the_policy():
    studies = [{"Edema": 1, "Fracture": -1}, {"Edema": 0, "Fracture": None}, {}]
    ignored = label_matrix(studies, ("Edema", "Fracture"))
    np.testing.assert_equal(ignored, [[1, np.nan], [0, np.nan], [np.nan, np.nan]])
    assert label_matrix(studies, ("Fracture",), uncertain="one")[0, 0] == 1
    assert label_matrix(studies, ("Fracture",), uncertain="zero")[0, 0] == 0
    with pytest.raises(ValueError, match="ignore, zero, one"):
        label_matrix(studies, ("Edema",), uncertain="maybe")


def test_the_best_threshold_is_the_best_of_all(tables):
    scores, labels = tables
    chosen = best_f1_thresholds(scores, labels)
    for column in range(3):
        counted = ~np.isnan(labels[:, column])
        values, truth = scores[counted, column], labels[counted, column]
        every = [f1_score(truth, values > t) for t in np.arange(-4, 4, 0.05)]
        assert f1_score(truth, values > chosen[column]) == pytest.approx(max(every))
    assert np.isnan(best_f1_thresholds(scores[:, :1], np.zeros((200, 1)))).all()


def test_confusion_and_roc_curve(tables):
    scores, labels = tables
    np.testing.assert_equal(
        confusion(np.array([True, True, False, False, True]), np.array([1, 0, 1, 0, np.nan])), [[1, 1], [1, 1]]
    )
    curve = roc_curve(scores[:, 0], labels[:, 0])
    counted = ~np.isnan(labels[:, 0])
    fpr, tpr, _ = sklearn_roc_curve(labels[counted, 0], scores[counted, 0], drop_intermediate=False)
    np.testing.assert_allclose(curve["fpr"], fpr)
    np.testing.assert_allclose(curve["tpr"], tpr)


def test_the_metric_gives_the_same_names(tables):
    scores, labels = tables
    metric = metrics.load("findings")
    result = metric.compute(predictions=scores, references=labels, findings=FINDINGS)
    expected = finding_scores(scores, labels, FINDINGS)
    assert result == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), r"3 findings, got \(2, 2\) and \(2, 3\)"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), "'Edema' in row 0 is nan"),
        (np.zeros((2, 3)), np.full((2, 3), -1), "label_matrix"),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(scores, labels, match):
    with pytest.raises(ValueError, match=match):
        finding_scores(scores, labels, FINDINGS)
