"""F1 of findings against counting by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.language.findings import label_report
from hf_medvlm.metrics.findings_text import findings_f1, macro_of_sums

REFERENCES = [
    "Small left effusion. Mild cardiomegaly.",
    "The heart is normal. The lungs are clear.",
    "Possible pneumonia. No effusion.",
    "Right pneumothorax with a chest tube.",
]
PREDICTIONS = [
    "Small left effusion. The heart is normal.",
    "The lungs are clear.",
    "Opacity may represent pneumonia. Small effusion.",
    "",
]


def test_counted_by_hand():
    scores = findings_f1(PREDICTIONS, REFERENCES)
    # hits: effusion, No Finding, pneumonia; extra: opacity, effusion; missed: cardiomegaly, pneumothorax, devices
    assert scores.metrics["findings_f1_micro"] == pytest.approx(2 * 3 / (5 + 6))
    # effusion 2/3, No Finding 1, Pneumonia 1; opacity, cardiomegaly, pneumothorax and devices 0
    assert scores.metrics["findings_f1_macro"] == pytest.approx((2 / 3 + 1 + 1) / 7)
    assert scores.per_study == pytest.approx([2 / 3, 1.0, 0.5, 0.0])
    effusion = scores.per_finding["Pleural Effusion"]
    assert effusion == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "n": 1}
    assert math.isnan(scores.per_finding["Fracture"]["f1"]) and scores.per_finding["Fracture"]["n"] == 0
    assert set(scores.protocol) == set(scores.metrics)


def test_equals_scikit_learn():
    predicted, true = (
        np.array([[v in (1, -1) for v in label_report(t).values()] for t in s]) for s in (PREDICTIONS, REFERENCES)
    )
    occurring = [i for i in range(14) if predicted[:, i].any() or true[:, i].any()]
    metrics = findings_f1(PREDICTIONS, REFERENCES).metrics
    assert metrics["findings_f1_micro"] == pytest.approx(f1_score(true, predicted, average="micro"))
    assert metrics["findings_f1_macro"] == pytest.approx(
        f1_score(true[:, occurring], predicted[:, occurring], average="macro")
    )


@pytest.mark.parametrize("texts", [[], ["", ""], ["Thank you."]])
def test_undefined_is_nan_never_zero(texts):
    scores = findings_f1(texts, texts)
    assert all(math.isnan(value) for value in [*scores.metrics.values(), *scores.per_study])
    assert list(scores.per_finding) == list(CHEXPERT_14)


def test_equal_texts_score_one():
    assert set(findings_f1(REFERENCES, REFERENCES).metrics.values()) == {1.0}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 and 1"):
        findings_f1(["a", "b"], ["a"])


def test_macro_f1_of_sums_is_the_macro_f1_of_the_studies_they_were_summed_over():
    texts = ["Cardiomegaly. No effusion.", "Left pleural effusion.", "The lungs are clear.", "Edema and effusion."]
    references = ["Cardiomegaly with edema.", "Left pleural effusion.", "Normal.", "Pulmonary edema."]
    sums = findings_f1(texts, references).sums_of_each
    for drawn in ([0, 1, 2, 3], [1, 1, 3, 0], [2, 2, 2, 2]):  # each resample: the obvious way beside the sums
        again = findings_f1([texts[i] for i in drawn], [references[i] for i in drawn])
        expected = again.metrics["findings_f1_macro"]
        assert macro_of_sums(sums[drawn].sum(0, keepdims=True)) == pytest.approx(expected)
    assert np.isnan(macro_of_sums(np.zeros((1, 28)))).all()
