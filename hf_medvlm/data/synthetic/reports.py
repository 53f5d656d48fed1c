"""Reports of synthetic studies: signs in, findings, impression, labels and phrases out. Draws nothing.

Radiologists go through a chest in a fixed order and each has his own wording; so do these. One of three voices writes a
report from the first sentence to the last, hence normal reports repeat word for word, as they do in real corpora. What
is present is always said; what is absent is said in some reports and passed over in others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_medvlm.data.synthetic.random import pick
from hf_medvlm.data.synthetic.signs import Sign
from hf_medvlm.labels import CHEXPERT_14

VOICE_SHARES = (0.6, 0.25, 0.15)

GRADES = {
    "Cardiomegaly": ("mild", "moderate", "severe"),
    "Enlarged Cardiomediastinum": ("mild", "moderate", "severe"),
    "Edema": ("mild", "moderate", "severe"),
    "Consolidation": ("mild", "moderate", "dense"),
    "Lung Opacity": ("faint", "moderate", "extensive"),
    "Atelectasis": ("mild", "moderate", "severe"),
    "Lung Lesion": ("small", "medium-sized", "large"),
    "Pleural Effusion": ("small", "moderate", "large"),
    "Pneumothorax": ("small", "moderate", "large"),
}
"""The words for levels 1, 2 and 3. A doubtful sign (0.5) takes the first."""

GRADED = tuple(name for name in GRADES if name != "Enlarged Cardiomediastinum")
"""Findings that grow and shrink from study to study, and that a report compares with the prior study."""

ORDER = (
    "Support Devices", "Cardiomegaly", "Enlarged Cardiomediastinum", "Edema", "Consolidation", "Lung Opacity",
    "Atelectasis", "Lung Lesion", "Pleural Effusion", "Pneumothorax", "Fracture",
)  # fmt: skip
UNCOUNTED = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Edema", "Atelectasis", "Consolidation")
LUNG_FINDINGS = ("Edema", "Consolidation", "Lung Opacity", "Atelectasis", "Lung Lesion")

# One wording for each voice.
SEEN = ("{phrase}", "there {is_are} {article}{phrase}", "{phrase} {is_are} seen")
DOUBTED = ("possible {phrase}", "there may be {article}{phrase}", "{phrase} {is_are} possible")
RESOLVED = ("previous {noun} has resolved", "the {noun} has resolved", "resolved {noun}")
CHANGES = {
    "new": ("new", "new since the prior study", "new"),
    "worsening": ("increased", "{larger} than before", "increased from the prior study"),
    "stable": ("unchanged", "unchanged", "unchanged from the prior study"),
    "improving": ("decreased", "{smaller} than before", "decreased from the prior study"),
}
DENIED: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("Cardiomegaly",): ("The heart is normal in size.", "Heart size is normal.", "The cardiac silhouette is normal."),
    ("Enlarged Cardiomediastinum",): ("The mediastinum is unremarkable.",) * 2 + ("Mediastinal contours are normal.",),
    ("Lung Opacity",): ("The lungs are clear.", "Lungs are clear.", "Both lungs are clear."),
    ("Consolidation",): ("No focal consolidation.", "There is no focal consolidation.", "No consolidation is seen."),
    ("Edema",): ("No pulmonary edema.", "There is no pulmonary edema.", "No edema is seen."),
    ("Pleural Effusion", "Pneumothorax"): (
        "No pleural effusion or pneumothorax.",
        "There is no pleural effusion or pneumothorax.",
        "No effusion or pneumothorax is seen.",
    ),
    ("Pleural Effusion",): ("No pleural effusion.", "There is no pleural effusion.", "No effusion is seen."),
    ("Pneumothorax",): ("No pneumothorax.", "There is no pneumothorax.", "No pneumothorax is seen."),
    ("Fracture",): ("No acute fracture.", "There is no acute fracture.", "No fracture is seen."),
}
ALL_CLEAR = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No evidence of acute cardiopulmonary disease.",
)
PNEUMONIA = ("Findings are concerning for pneumonia.", "This may represent pneumonia.", "Pneumonia is possible.")
INDICATIONS = {
    "Support Devices": ("Line placement.", "Postoperative follow-up."),
    "Cardiomegaly": ("Hypertension.", "Shortness of breath."),
    "Edema": ("Shortness of breath.", "Leg swelling."),
    "Consolidation": ("Cough and fever.", "Fever."),
    "Lung Opacity": ("Cough and fever.", "Cough."),
    "Lung Lesion": ("Weight loss.", "Smoker with cough."),
    "Pleural Effusion": ("Shortness of breath.", "Chest pain."),
    "Pneumothorax": ("Sudden chest pain.", "Fall."),
    "Fracture": ("Fall.", "Motor vehicle accident."),
}
USUAL_INDICATIONS = ("Chest pain.", "Preoperative evaluation.", "Shortness of breath.", "Cough.")


@dataclass
class Text:
    """What is written about one study.

    `labels` holds CheXpert's 14 states as the text says them; `phrases` the words that a sign of each finding goes by;
    `progression` improving, stable or worsening for each finding that the prior study or this one shows.
    """

    indication: str
    findings: str = ""
    impression: str = ""
    labels: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(CHEXPERT_14))
    phrases: dict[str, str] = field(default_factory=dict)
    progression: dict[str, str] = field(default_factory=dict)

    def report(self, has_prior: bool) -> str:
        """The sections under their headings, in MIMIC-CXR's layout."""
        comparison = "Prior chest radiograph." if has_prior else "None."
        return (
            f"INDICATION: {self.indication}\n\nCOMPARISON: {comparison}\n\n"
            f"FINDINGS: {self.findings}\n\nIMPRESSION: {self.impression}"
        )


def noun(sign: Sign) -> str:
    """What and where, without a grade: "left pleural effusion"."""
    side = "bilateral" if sign.side == "both" else sign.side
    plural = "s" if sign.side == "both" else ""
    if sign.finding == "Atelectasis":
        return "bibasilar atelectasis" if plural else f"{side} basilar atelectasis"
    if sign.finding == "Fracture":
        return f"{side} clavicle fracture" if sign.kind == "clavicle" else f"{side} rib fractures"
    named = {
        "Cardiomegaly": "cardiomegaly",
        "Enlarged Cardiomediastinum": "widening of the mediastinum",
        "Edema": "pulmonary edema",
        "Consolidation": f"{side} {sign.zone} lung consolidation",
        "Lung Opacity": f"hazy opacity in the {side} {sign.zone} lung",
        "Lung Lesion": f"{'mass' if sign.level == 3 else 'nodule'} in the {side} {sign.zone} lung",
        "Pleural Effusion": f"{side} pleural effusion{plural}",
        "Pneumothorax": f"{side} pneumothorax",
        "Support Devices": f"{side} {sign.kind}".strip(),
    }
    return named[sign.finding]


def phrase(sign: Sign) -> str:
    """The noun with its grade: "small left pleural effusion"."""
    if sign.finding == "Fracture":
        return f"displaced {noun(sign)}"
    if sign.finding not in GRADES:
        return noun(sign)
    return f"{GRADES[sign.finding][max(int(sign.level), 1) - 1]} {noun(sign)}"


def _sentence(sign: Sign, voice: int, change: str | None) -> str:
    words = phrase(sign)
    plural = words.endswith(("fractures", "effusions", "wires"))
    uncounted = plural or sign.finding in UNCOUNTED
    article = "" if uncounted else "an " if words[0] in "aeiou" else "a "
    pattern = (DOUBTED if sign.level < 1 else SEEN)[voice]
    text = pattern.format(phrase=words, article=article, is_are="are" if plural else "is")
    if change:
        sized = GRADES[sign.finding][0] == "small"
        larger, smaller = ("larger", "smaller") if sized else ("worse", "better")
        text += ", " + CHANGES[change][voice].format(larger=larger, smaller=smaller)
    return _capital(f"{text}.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _change(before: float, now: float) -> str:
    if before == now:
        return "stable"
    return "new" if before == 0 else "worsening" if now > before else "improving"


def write(signs: Sequence[Sign], prior: Mapping[str, Sign] | None, rng: random.Random) -> Text:
    """Describe the signs of a study.

    Args:
        prior: finding -> sign of the prior study, None where there is no prior study.
    """
    here = {sign.finding: sign for sign in signs}
    voice = pick(rng, (0, 1, 2), VOICE_SHARES)
    text = Text(_indication(signs, rng))
    sentences: dict[str, str] = {}
    for name in ORDER:
        change = None
        before = prior.get(name) if prior is not None else None
        if prior is not None and name in GRADED and (before or name in here):
            change = _change(before.level if before else 0, here[name].level if name in here else 0)
            text.progression[name] = "worsening" if change == "new" else change
        if name in here:
            sign = here[name]
            sentences[name] = _sentence(sign, voice, change)
            text.labels[name] = -1 if sign.level < 1 else 1
            text.phrases[name] = phrase(sign)
        elif change is not None and before is not None:
            sentences[name] = _capital(RESOLVED[voice].format(noun=noun(before)) + ".")
            text.labels[name] = 0
    _deny(here, sentences, text.labels, voice, rng)
    text.findings = " ".join(sentences[name] for name in ORDER if name in sentences)
    text.impression = _impression(signs, voice, text.labels)
    if not any(state in (1, -1) for name, state in text.labels.items() if name != "Support Devices"):
        text.labels["No Finding"] = 1
    return text


def _indication(signs: Sequence[Sign], rng: random.Random) -> str:
    reasons = [reason for sign in signs for reason in INDICATIONS.get(sign.finding, ())]
    usual = not reasons or rng.random() < 0.3
    return pick(rng, USUAL_INDICATIONS if usual else reasons)


def _deny(
    here: Mapping[str, Sign], sentences: dict[str, str], labels: dict[str, int | None], voice: int, rng: random.Random
) -> None:
    """Add what is absent: a brief report names lungs and pleura, a usual one the heart too, a full one everything."""
    length = pick(rng, (0, 1, 2), (0.12, 0.5, 0.38))
    clear = not any(name in here for name in LUNG_FINDINGS)
    pleura = tuple(name for name in ("Pleural Effusion", "Pneumothorax") if name not in sentences)
    asked = [pleura] if pleura else []
    asked += [("Lung Opacity",)] if clear else [("Consolidation",)] if length else []
    asked += [("Cardiomegaly",)] if length else []
    asked += [("Enlarged Cardiomediastinum",), ("Fracture",), ("Edema",)] if length == 2 else []
    for names in asked:
        if names[0] not in sentences:
            sentences[names[0]] = DENIED[names][voice]
            labels.update(dict.fromkeys(names, 0))


def _impression(signs: Sequence[Sign], voice: int, labels: dict[str, int | None]) -> str:
    here = {sign.finding: sign for sign in signs}
    listed = [here[name] for name in ORDER[1:] if name in here]
    items = [f"possible {phrase(sign)}" if sign.level < 1 else phrase(sign) for sign in listed]
    if not items:
        return ALL_CLEAR[voice]
    if voice == 1:
        text = _capital(" and ".join(filter(None, (", ".join(items[:-1]), items[-1])))) + "."
    else:
        text = " ".join(_capital(item) + "." for item in items)
    if "Consolidation" in here and here["Consolidation"].level >= 2:
        labels["Pneumonia"] = -1
        text += " " + PNEUMONIA[voice]
    return text
