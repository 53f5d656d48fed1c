"""Side, severity and change as the text says them, against sentences and against what synthetic reports are made of."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from hf_medvlm.data.synthetic.reports import GRADED, GRADES, write
from hf_medvlm.data.synthetic.signs import Sign
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.language import Description, describe_findings, label_report
from hf_medvlm.language.findings import STATE_CODES

EFFUSION, PTX, EDEMA = "Pleural Effusion", "Pneumothorax", "Edema"
LEFT, RIGHT = frozenset({"left"}), frozenset({"right"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion, unchanged.", {EFFUSION: ("present", LEFT, "mild", "unchanged")}),
        ("Large right pneumothorax has increased.", {PTX: ("present", RIGHT, "severe", "worse")}),
        ("Bilateral effusions are stable.", {EFFUSION: ("present", LEFT | RIGHT, None, "unchanged")}),
        (
            "There is a moderate right effusion, larger than before.",
            {EFFUSION: ("present", RIGHT, "moderate", "worse")},
        ),
        ("The previously seen left pneumothorax has resolved.", {PTX: ("absent", LEFT, None, "resolved")}),
        ("Interval resolution of edema.", {EDEMA: ("absent", frozenset(), None, "resolved")}),
        ("Pneumothorax is no longer seen.", {PTX: ("absent", frozenset(), None, "resolved")}),
        ("Left effusion, which has resolved.", {EFFUSION: ("absent", LEFT, None, "resolved")}),
        (
            "Resolution of edema, no effusion.",
            {EDEMA: ("absent", frozenset(), None, "resolved"), EFFUSION: ("absent", frozenset(), None, None)},
        ),
        (
            "Mild bibasilar atelectasis and small right effusion.",
            {"Atelectasis": ("present", LEFT | RIGHT, "mild", None), EFFUSION: ("present", RIGHT, "mild", None)},
        ),
        (
            "Effusion and edema are unchanged.",
            {
                EFFUSION: ("present", frozenset(), None, "unchanged"),
                EDEMA: ("present", frozenset(), None, "unchanged"),
            },
        ),
        (
            "No significant change in the moderate left effusion.",
            {EFFUSION: ("present", LEFT, "moderate", "unchanged")},
        ),
        ("New consolidation in the RLL.", {"Consolidation": ("present", RIGHT, None, "new")}),
        ("Mildly increased edema.", {EDEMA: ("present", frozenset(), None, "worse")}),
        ("The edema has not resolved.", {EDEMA: ("present", frozenset(), None, "unchanged")}),
        ("The edema has nearly resolved.", {EDEMA: ("present", frozenset(), None, "improved")}),
        ("Left effusion, which has decreased.", {EFFUSION: ("present", LEFT, None, "improved")}),
        ("No new or large effusion.", {EFFUSION: ("absent", frozenset(), None, None)}),
        ("Possible small left effusion.", {EFFUSION: ("uncertain", LEFT, "mild", None)}),
        ("The heart is moderately enlarged.", {"Cardiomegaly": ("present", frozenset(), "moderate", None)}),
        ("Heart size is normal and stable.", {"Cardiomegaly": ("absent", frozenset(), None, None)}),
        ("Small left effusion. Moderate right effusion.", {EFFUSION: ("present", LEFT | RIGHT, "moderate", None)}),
        ("No left effusion. Small right effusion.", {EFFUSION: ("present", RIGHT, "mild", None)}),
    ],
)
def test_descriptions(text: str, expected: dict[str, tuple]) -> None:
    assert describe_findings(text) == {name: Description(*values) for name, values in expected.items()}


def test_the_states_are_label_reports() -> None:
    for text in (
        "No effusion. Mild edema. Possible pneumonia.",
        "Enlarged heart, stable. No pneumothorax, PICC in place.",
    ):
        codes = {name: int(STATE_CODES[one.state]) for name, one in describe_findings(text).items()}
        assert codes == {k: v for k, v in label_report(text).items() if v is not None and k != "No Finding"}


SAID = {"worsening": {"new", "worse"}, "stable": {"unchanged"}, "improving": {"improved", "resolved"}}


def test_what_synthetic_reports_are_made_of_is_read_back() -> None:
    """Every graded finding at every level, after every level, in every voice."""
    severity, seen = {0: "mild", 1: "mild", 2: "moderate", 3: "severe"}, Counter()
    for finding in GRADED:
        zoned = finding in ("Consolidation", "Lung Opacity", "Lung Lesion")
        sided = zoned or finding in ("Pleural Effusion", "Pneumothorax", "Atelectasis")
        for before in (0, 1, 2, 3):
            for now in (0, 0.5, 1, 2, 3):
                for seed in range(6):
                    rng = random.Random(seed)
                    side = rng.choice(("left", "right")) if sided else ""
                    zone = rng.choice(("upper", "lower")) if zoned else ""
                    prior = {finding: Sign(finding, before, side, zone)} if before else {}
                    text = write([Sign(finding, now, side, zone)] if now else [], prior, rng)
                    if not (before or now):
                        continue
                    one = describe_findings(text.findings)[finding]
                    seen[text.progression[finding]] += 1
                    assert one.change in SAID[text.progression[finding]], text.findings
                    assert not side or one.sides == {side}, text.findings
                    if now >= 1 and GRADES[finding][int(now) - 1] not in ("dense", "medium-sized"):
                        assert one.severity == severity[int(now)], text.findings
    assert min(seen.values()) > 100 and set(seen) == set(SAID)
    assert set(GRADED) < set(CHEXPERT_14)
