"""The audit against hand-counted reports."""

from __future__ import annotations

import evaluate
import numpy as np
import pytest

from hf_medvlm import metrics
from hf_medvlm.language.descriptions import comparing_sentences
from hf_medvlm.metrics.audit import AUDITED, audit
from hf_medvlm.metrics.intervals import bootstrap_interval, bootstrap_ratios, ratio_of_sums

REFERENCES = [
    "Small left pleural effusion, unchanged. No pneumothorax.",
    "Moderate right pneumothorax. Cardiomegaly.",
    "The lungs are clear. No effusion.",
    "Possible pneumonia. Edema has resolved.",
]
PREDICTIONS = [
    "Large right pleural effusion, increased. No pneumothorax.",  # side, severity and change wrong
    "Moderate right pneumothorax.",  # cardiomegaly omitted
    "Stable left effusion.",  # invented
    "Pneumonia. Edema has resolved.",  # uncertain there: not invented
]
PATIENTS = ["a", "b", "c", "c"]


def test_the_rates_are_those_counted_by_hand() -> None:
    result = audit(PREDICTIONS, REFERENCES, PATIENTS, saw_prior=[True, False, False, True])
    assert result.metrics == {
        "audit_invented": 1 / 4,  # of effusion, pneumothorax, effusion, pneumonia
        "audit_omitted": 1 / 3,  # of effusion, pneumothorax, cardiomegaly
        "audit_side_wrong": 1 / 2,  # effusion; the pneumothorax is right
        "audit_severity_wrong": 1 / 2,
        "audit_change_wrong": 1 / 2,  # effusion; the edema has resolved in both
        "audit_change_without_prior": 1 / 2,  # the third; the second compares nothing
    }
    assert set(result.intervals) == set(result.protocol) == set(result.metrics)
    assert [[(e.kind, e.finding) for e in errors] for errors in result.errors] == [
        [(kind, "Pleural Effusion") for kind in ("side_wrong", "severity_wrong", "change_wrong")],
        [("omitted", "Cardiomegaly")],
        [("invented", "Pleural Effusion"), ("change_without_prior", "")],
        [],
    ]
    assert result.errors[0][0].to_dict() == {
        "kind": "side_wrong",
        "finding": "Pleural Effusion",
        "reference": "present, left, mild, unchanged",
        "prediction": "present, right, severe, worse",
    }
    effusion = result.per_finding["Pleural Effusion"]
    assert (effusion["invented"]["errors"], effusion["invented"]["of"], effusion["invented"]["rate"]) == (1, 2, 0.5)
    assert effusion["omitted"]["rate"] == 0 and "change_wrong" not in result.per_finding["Pneumothorax"]
    assert set(result.per_finding) <= set(AUDITED)


def test_a_report_has_no_errors_against_itself_and_an_empty_one_omits_all() -> None:
    same = audit(REFERENCES, REFERENCES, PATIENTS, [True] * 4)
    assert set(np.nan_to_num(list(same.metrics.values())).tolist()) == {0.0}
    assert np.isnan(same.metrics["audit_change_without_prior"]) and not any(same.errors)
    empty = audit([""] * 4, REFERENCES, resamples=0)
    assert empty.metrics["audit_omitted"] == 1 and np.isnan(empty.metrics["audit_invented"]) and not empty.intervals


def test_the_metric_and_its_interval() -> None:
    metric = metrics.load("audit")
    assert isinstance(metric, evaluate.Metric)
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, patients=PATIENTS)
    assert result["audit_omitted"] == pytest.approx(1 / 3) and "omitted" in result["protocol"]
    low, high = result["intervals"]["audit_omitted"]
    assert 0 <= low <= 1 / 3 <= high <= 1


def test_many_intervals_are_the_single_ones() -> None:
    rng = np.random.default_rng(0)
    sums = np.stack([rng.integers(0, 2, (30, 4)), rng.integers(0, 3, (30, 4))], axis=-1)
    patients = rng.integers(0, 9, 30).tolist()
    single = [bootstrap_interval(sums[:, k], patients, ratio_of_sums) for k in range(4)]
    assert np.allclose(bootstrap_ratios(sums, patients), single)
    assert np.isnan(bootstrap_ratios(sums, [1] * 30)).all()


@pytest.mark.parametrize(
    ("text", "compares"),
    [
        ("Stable cardiomegaly.", True),
        ("No change in the left effusion.", True),
        ("New opacity at the right base.", True),
        ("The edema has resolved.", True),
        ("Effusion is larger than before.", True),
        ("Compared to the prior study, lungs are clearer.", True),
        ("No interval change.", True),
        ("Again seen is a right PICC.", True),
        ("Increased interstitial markings.", False),
        ("Increased opacity at the left base.", False),
        ("Small left effusion. Lungs are clear.", False),
        ("Old rib fractures. Chronic scarring.", False),
    ],
)
def test_what_compares(text: str, compares: bool) -> None:
    assert bool(comparing_sentences(text)) == compares


def test_lengths_must_agree_and_other_languages_are_named() -> None:
    with pytest.raises(ValueError, match="one of references for each prediction, got 1 and 2"):
        audit(["a", "b"], ["a"])
    spanish = ["Silueta cardíaca normal. No se observa derrame pleural."]
    result = audit(spanish, spanish, resamples=0)
    assert "findings are read in English, and of 1 texts 1 in Spanish" in result.protocol["audit_omitted"]
