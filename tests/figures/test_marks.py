"""How prediction and reference stand to each other, finding by finding and sentence by sentence."""

from __future__ import annotations

import pytest

from hf_medvlm.figures.marks import agreement, compare, mark, relation
from hf_medvlm.language.findings import label_report


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [
        (1, 1, "agree"), (0, 0, "agree"), (-1, -1, "agree"), (None, None, None),
        (1, 0, "contradict"), (0, 1, "contradict"),
        (1, None, "missed"), (None, 1, "added"), (0, None, None), (None, 0, None),
        (-1, 1, "unsure"), (1, -1, "unsure"), (-1, None, "unsure"), (None, -1, "unsure"), (0, -1, "unsure"),
    ],
)  # fmt: skip
def test_every_pair_of_states(reference, prediction, expected):
    assert relation(reference, prediction) == expected


def test_no_finding_is_not_counted_twice():
    assert compare({"No Finding": 1, "Edema": None}, {"No Finding": None, "Edema": 1}) == {"Edema": "added"}


def test_a_classifier_is_not_blamed_for_a_missing_label():
    sides = {"Edema": None, "Fracture": 1}, {"Edema": 1, "Fracture": 1}
    assert compare(*sides, labelled_only=True) == {"Fracture": "agree"}


def test_sentences_take_the_worst_relation_and_the_text_is_unchanged():
    reference = "Large left effusion.  The heart is normal.\n\nNo pneumothorax. Thin patient."
    prediction = "No pleural\n effusion. Heart size is normal. Rib fracture."
    states = label_report(reference), label_report(prediction)
    marked = mark(prediction, states[0], is_reference=False)
    assert "".join(text for text, _, _ in marked) == prediction
    assert [(text, how) for text, how, _ in marked if how] == [
        ("No pleural\n effusion.", "contradict"),
        ("Heart size is normal.", "agree"),
        ("Rib fracture.", "added"),
    ]
    other = mark(reference, states[1], is_reference=True)
    assert "".join(text for text, _, _ in other) == reference
    assert [how for _, how, _ in other if how] == ["contradict", "agree"]
    assert other[0][2].startswith("Pleural Effusion present; prediction: absent")


def test_a_finding_that_nobody_asked_for_is_not_marked():
    assert mark("Rib fracture. Edema.", {"Edema": 0}, is_reference=True) == [
        ("Rib fracture. ", "", ""),
        ("Edema.", "contradict", "Edema present; prediction: absent"),
    ]


def test_an_empty_text_has_no_segments():
    assert mark("", {"Edema": 1}, is_reference=False) == []


def test_agreement_counts_the_unsure_as_half():
    assert agreement({}) is None
    assert agreement({"a": "agree", "b": "unsure", "c": "missed", "d": "added"}) == 0.375
