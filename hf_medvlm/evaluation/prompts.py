"""Sentences that say that a finding is there, or is not: what zero-shot classification compares an image with.

Each finding has an ensemble for either side, as in BioViL's zero-shot test (microsoft/hi-ml-multimodal). Plain words
of reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

PRESENT = ("{finding}.", "There is {finding}.", "{finding} is seen.", "Findings consistent with {finding}.")
ABSENT = ("No {finding}.", "There is no {finding}.", "No {finding} is seen.", "No evidence of {finding}.")

# Findings that reports call by other words than CheXpert's name, or deny in words of their own: (present, absent).
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Cardiomegaly": (
        ("Cardiomegaly.", "There is cardiomegaly.", "The heart is enlarged.", "Cardiomegaly is seen."),
        ("The heart is normal in size.", "Heart size is normal.", "The cardiac silhouette is normal."),
    ),
    "Edema": (
        ("Pulmonary edema.", "There is pulmonary edema.", "Pulmonary edema is seen."),
        ("No pulmonary edema.", "There is no pulmonary edema.", "No edema is seen."),
    ),
    "Enlarged Cardiomediastinum": (
        ("Widening of the mediastinum.", "The mediastinum is widened.", "Enlarged cardiomediastinal silhouette."),
        ("The mediastinum is unremarkable.", "Mediastinal contours are normal."),
    ),
    "Lung Lesion": (
        ("Lung nodule.", "There is a nodule in the lung.", "There is a mass in the lung.", "A nodule is seen."),
        ("No lung nodule or mass.", "The lungs are clear.", "No nodule is seen."),
    ),
    "Lung Opacity": (
        ("Hazy opacity in the lung.", "There is an opacity in the lung.", "Lung opacity is seen."),
        ("The lungs are clear.", "Lungs are clear.", "Both lungs are clear."),
    ),
    "No Finding": (
        ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.", "Normal chest radiograph."),
        ("Abnormal chest radiograph.", "There is an acute cardiopulmonary abnormality.", "There is disease."),
    ),
    "Pleural Other": (
        ("Pleural thickening.", "There is pleural thickening or scarring.", "Pleural thickening is seen."),
        ("No pleural thickening.", "The pleura is unremarkable."),
    ),
    "Support Devices": (
        ("A line or tube is in place.", "Pacemaker.", "Sternotomy wires are seen.", "Support devices are seen."),
        ("No lines or tubes.", "There are no support devices.", "No support devices are seen."),
    ),
}


def prompts_for(finding: str) -> tuple[Sequence[str], Sequence[str]]:
    """Sentences for and against `finding` (a CheXpert name or any other): its own wordings, or general ones."""
    if finding in WORDINGS:
        return WORDINGS[finding]
    name = finding.lower()
    return tuple(_sentence(text, name) for text in PRESENT), tuple(_sentence(text, name) for text in ABSENT)


def sentence_pairs(findings: Sequence[str]) -> tuple[list[tuple[str, str]], list[bool]]:
    """Pairs of the findings' own sentences, and whether they say the same: two of one side do, one of each does not."""
    pairs, same = [], []
    for present, absent in map(prompts_for, findings):
        alike = [*combinations(present, 2), *combinations(absent, 2)]
        unlike = list(product(present, absent))
        pairs += alike + unlike
        same += [True] * len(alike) + [False] * len(unlike)
    return pairs, same


def _sentence(template: str, name: str) -> str:
    text = template.format(finding=name)
    return text[0].upper() + text[1:]
