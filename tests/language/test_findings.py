"""The rules that read findings from report text: sentences with their states, places, and the IU annotators' terms."""

import json
import random
import re
import time
from pathlib import Path

import pytest

from hf_medvlm.labels import CHEXPERT_14, MEDKLIP_ENTITIES, MEDKLIP_POSITIONS
from hf_medvlm.language import mentions
from hf_medvlm.language.findings import extract_triplets, label_report, positions_of, term_of
from hf_medvlm.language.findings_terms import ORGANS, PLACES, TERMS
from hf_medvlm.language.sections import sentences

EFFUSION, PTX, HEART, OPACITY = "Pleural Effusion", "Pneumothorax", "Cardiomegaly", "Lung Opacity"

# Text -> what is said in it, "No Finding" apart; every finding that is not named here is not mentioned.
SAID = [
    # Plain
    ("Small left pleural effusion.", {EFFUSION: 1}),
    ("Stable cardiomegaly.", {HEART: 1}),
    ("Unchanged moderate cardiomegaly.", {HEART: 1}),
    ("Old healed left rib fractures.", {"Fracture": 1}),
    ("PICC line with its tip in the SVC.", {"Support Devices": 1}),
    # Denial, forward, over lists, to the end of its statement
    ("No effusion or pneumothorax.", {EFFUSION: 0, PTX: 0}),
    ("No consolidation, pneumothorax, or pleural effusion.", {"Consolidation": 0, PTX: 0, EFFUSION: 0}),
    ("There is no pneumothorax and there is a small effusion.", {PTX: 0, EFFUSION: 1}),
    ("No pneumothorax is seen and a small effusion is present.", {PTX: 0, EFFUSION: 1}),
    ("No pneumothorax is seen, the heart is enlarged.", {PTX: 0, HEART: 1}),
    ("No effusion, the heart is enlarged.", {EFFUSION: 0, HEART: 1}),
    ("No pneumothorax; small left effusion.", {PTX: 0, EFFUSION: 1}),
    ("Cardiomegaly without edema.", {HEART: 1, "Edema": 0}),
    ("No effusion, but there is atelectasis.", {EFFUSION: 0, "Atelectasis": 1}),
    ("Negative for pneumothorax.", {PTX: 0}),
    ("Absence of consolidation.", {"Consolidation": 0}),
    ("The lungs are free of consolidation.", {"Consolidation": 0}),
    ("The lungs are clear of airspace disease, pneumothorax or pleural effusion.", {OPACITY: 0, PTX: 0, EFFUSION: 0}),
    ("Neither effusion nor pneumothorax is seen.", {EFFUSION: 0, PTX: 0}),
    ("Atelectasis rather than pneumonia.", {"Atelectasis": 1, "Pneumonia": 0}),
    ("Interval resolution of the right effusion.", {EFFUSION: 0}),
    ("Resolved pneumonia.", {"Pneumonia": 0}),
    ("No focal consolidation to suggest pneumonia.", {"Consolidation": 0, "Pneumonia": 0}),
    ("No findings suspicious for pneumonia.", {"Pneumonia": 0}),
    # Denial, backward
    ("Pneumothorax is not seen.", {PTX: 0}),
    ("Effusion and pneumothorax are not identified.", {EFFUSION: 0, PTX: 0}),
    ("The left pleural effusion has resolved.", {EFFUSION: 0}),
    ("The previously seen pneumothorax is no longer visualized.", {PTX: 0}),
    ("The chest tube has been removed.", {"Support Devices": 0}),
    ("Effusion has resolved, but consolidation has developed.", {EFFUSION: 0, "Consolidation": 1}),
    ("Pleural effusion: none.", {EFFUSION: 0}),
    ("Pneumonia is unlikely.", {"Pneumonia": 0}),
    ("No effusion, possible edema.", {EFFUSION: 0, "Edema": -1}),
    ("No suspicious nodule.", {"Lung Lesion": 0}),
    # Values of the laboratory, and what is thought of a finding that is there
    ("Normal cardiac troponin, heart rate 90. The heart is enlarged.", {HEART: 1}),
    # What relatives have
    ("Her sister had been diagnosed with lung cancer. Complete resolution of the nodule.", {"Lung Lesion": 0}),
    ("A patient with a family history of lung cancer, small left effusion.", {EFFUSION: 1}),
    ("No family history of emphysema; cardiomegaly.", {HEART: 1}),
    ("The parent vessel is seen. Small effusion.", {EFFUSION: 1}),
    ("Normal cardiac enzymes.", {}),
    ("RT-PCR -ve and left basal pneumonia.", {"Pneumonia": 1}),
    ("PCR was negative for pneumonia.", {"Pneumonia": 0}),
    ("Peripheral opacification considered typical for COVID-19.", {OPACITY: 1}),
    ("Right basal opacity considered to represent pneumonia.", {OPACITY: 1, "Pneumonia": -1}),
    # What looks like a denial and is none
    ("No change in the small left effusion.", {EFFUSION: 1}),
    ("No significant interval change in moderate cardiomegaly.", {HEART: 1}),
    ("Without change in the right pneumothorax.", {PTX: 1}),
    ("Near complete resolution of the left effusion.", {EFFUSION: 1}),
    ("Follow up to ensure resolution of the pneumonia.", {"Pneumonia": 1}),
    ("Opacity consistent with pneumonia.", {OPACITY: 1, "Pneumonia": 1}),
    # Doubt
    ("Possible small left pleural effusion.", {EFFUSION: -1}),
    ("Opacity may represent atelectasis.", {OPACITY: 1, "Atelectasis": -1}),
    ("Opacity which may represent edema, or pneumonia.", {OPACITY: 1, "Edema": -1, "Pneumonia": -1}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
    ("Cannot exclude pneumonia.", {"Pneumonia": -1}),
    ("Atelectasis, though infection is not excluded.", {"Atelectasis": 1, "Pneumonia": -1}),
    ("Fracture is difficult to exclude.", {"Fracture": -1}),
    ("Suggestive of edema.", {"Edema": -1}),
    ("Question of a nodule in the right upper lobe.", {"Lung Lesion": -1}),
    ("Borderline heart size.", {HEART: -1}),
    ("The heart size is borderline.", {HEART: -1}),
    ("Borderline cardiomegaly.", {HEART: 1}),
    ("Evaluate for pneumonia.", {"Pneumonia": -1}),
    ("Possible atelectasis and small effusion.", {"Atelectasis": -1, EFFUSION: 1}),
    # Alternatives are present, each of them
    ("Left basilar atelectasis or consolidation.", {"Atelectasis": 1, "Consolidation": 1}),
    ("Pneumonia versus atelectasis.", {"Pneumonia": 1, "Atelectasis": 1}),
    # A place that is large or normal
    ("The heart is enlarged.", {HEART: 1}),
    ("Enlarged heart.", {HEART: 1}),
    ("Heart size remains slightly large.", {HEART: 1}),
    ("The heart is normal or mildly enlarged.", {HEART: 1}),
    ("Heart size is normal.", {HEART: 0}),
    ("The heart is normal in size.", {HEART: 0}),
    ("The heart is not enlarged.", {HEART: 0}),
    ("Cardiomediastinal silhouette is within normal limits.", {HEART: 0, "Enlarged Cardiomediastinum": 0}),
    ("Heart, mediastinum and lungs are unremarkable.", {HEART: 0, "Enlarged Cardiomediastinum": 0}),
    ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": 1}),
    ("Enlarged right hilum.", {}),
    ("The lungs are clear.", {OPACITY: 0}),
    ("The costophrenic angles are clear.", {}),
    # Words that name no finding of the list
    ("Pericardial effusion.", {}),
    ("Subcutaneous emphysema and pedal edema.", {}),
    ("Lytic bone lesion.", {}),
    ("Vascular congestion.", {}),
    # Several sentences: present over uncertain over absent
    ("No effusion. Possible effusion.", {EFFUSION: -1}),
    ("Possible effusion. Small effusion. No effusion.", {EFFUSION: 1}),
    # As models write: lower case, spaced full stops
    ("the heart is normal . there is no effusion . mild edema .", {HEART: 0, EFFUSION: 0, "Edema": 1}),
    ("The lungs are clear.No effusion.", {OPACITY: 0, EFFUSION: 0}),
    # Unicode
    ("Left\u2010sided e\ufb00usion can\u2019t be excluded.", {EFFUSION: -1}),
]


PHRASES = json.loads((Path(__file__).parent / "phrases_own.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("phrase", PHRASES, ids=[phrase["text"][:60] for phrase in PHRASES])
def test_phrases(phrase):
    """How far a denial or doubt reaches, answers, sections, abbreviations: judged as a radiologist would."""
    labels = label_report(phrase["text"])
    assert {name: labels[name] for name, right in phrase["states"].items() if labels[name] not in right} == {}


@pytest.mark.parametrize(("text", "states"), SAID, ids=[text[:60] for text, _ in SAID])
def test_states(text, states):
    labels = label_report(text)
    assert list(labels) == list(CHEXPERT_14)
    assert {k: v for k, v in labels.items() if v is not None and k != "No Finding"} == states


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Normal chest.", 1),
        ("The heart is normal. The lungs are clear. No effusion or pneumothorax.", 1),
        ("Pacemaker in place. The lungs are clear.", 1),
        ("Possible effusion.", None),
        ("Small hiatal hernia. The lungs are clear.", None),
        ("The lungs are clear. Emphysema.", None),
        ("", None),
        ("Thank you for this referral.", None),
    ],
)
def test_no_finding(text, state):
    assert label_report(text)["No Finding"] == state


@pytest.mark.parametrize(
    ("text", "triplets"),
    [
        ("No evidence of pneumothorax.", [("pneumothorax", "unspecified", "absent")]),
        ("Small left pleural effusion.", [("effusion", "left_pleural", "present")]),
        ("Bilateral effusions.", [("effusion", p, "present") for p in ("left_pleural", "right_pleural")]),
        ("Right apical pneumothorax.", [("pneumothorax", "right_pleural", "present")]),
        ("Bibasilar atelectasis.", [("atelectasis", "lung_bases", "present")]),
        ("Left base opacity.", [("opacity", "left_lower_lung", "present")]),
        ("Opacity in the right middle lobe.", [("opacity", "middle_right_lobe", "present")]),
        ("Possible nodule in the left upper lobe.", [("nodule", "upper_left_lobe", "uncertain")]),
        (
            "The heart is borderline enlarged.",
            [("borderline", "heart_size", "uncertain"), ("enlarge", "heart_size", "uncertain")],
        ),
        (
            "Atelectasis and consolidation in the left lower lobe.",
            [("atelectasis", "lower_left_lobe", "present"), ("consolidation", "lower_left_lobe", "present")],
        ),
        (
            "Bibasilar atelectasis and small right effusion.",
            [("atelectasis", "lung_bases", "present"), ("effusion", "right_pleural", "present")],
        ),
        ("Heart size is normal.", [("normal", "heart_size", "present")]),
        (
            "The aorta is tortuous and calcified.",
            [("tortuous", "aorta", "present"), ("calcification", "aorta", "present")],
        ),
        ("Hiatal hernia. Hiatal hernia.", [("hernia", "unspecified", "present")]),
        ("Blunted right costophrenic angle.", [("blunt", "right_costophrenic", "present")]),
        (
            "Blunting of the left costophrenic angle suggests effusion.",
            [("blunt", "left_costophrenic", "present"), ("effusion", "unspecified", "uncertain")],
        ),
        ("", []),
    ],
)
def test_triplets(text, triplets):
    assert extract_triplets(text) == triplets


def test_a_whole_report_is_read_without_its_indication_and_history():
    text = (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  History of "
        "pneumothorax, rule out pneumonia.\n \n COMPARISON:  Effusion on the prior.\n \n FINDINGS: \n \n Mild edema.\n "
        "\n IMPRESSION: \n \n Cardiomegaly.\n"
    )
    assert {k: v for k, v in label_report(text).items() if v is not None} == {HEART: 1, "Edema": 1}


def test_the_lexicon_keeps_to_the_vocabularies():
    assert {term.entity for term in TERMS} <= set(MEDKLIP_ENTITIES)
    assert {term.finding for term in TERMS} <= {None, *CHEXPERT_14}
    assert {position for positions in ORGANS.values() for position in positions} <= set(MEDKLIP_POSITIONS)
    assert {organ for _, organs in PLACES for organ in organs.split("+")} <= set(ORGANS)
    assert {term.organ for term in TERMS if term.organ} <= set(ORGANS)


def test_words_are_found_as_by_trying_every_pattern_at_every_place():
    """The slow way: at each place, the first pattern of the list that matches there and ends a word."""
    words = [(meant, re.compile(rf"(?:{pattern})(?!\w)")) for meant, pattern in mentions._PATTERNS]
    signs = [(meant, re.compile(pattern)) for meant, pattern in mentions._SIGNS]

    def slowly(sentence):
        place, listed = 0, []
        while place < len(sentence):
            in_word = place and re.match(r"\w\w", sentence[place - 1 : place + 1])
            for meant, pattern in [*([] if in_word else words), *signs]:
                match = pattern.match(sentence, place)
                if match:
                    listed += [event for event in meant if event.kind != "none"]
                    place = match.end() - 1
                    break
            place += 1
        return listed

    for text in (*(text for text, _ in SAID), *(phrase["text"] for phrase in PHRASES)):
        for sentence in sentences(text):
            sentence = mentions.plain(sentence)
            assert mentions.events(sentence) == slowly(sentence), sentence


def test_looking_up_words_for_other_readers():
    assert term_of("Left effusions").entity == "effusion"
    assert term_of("heart") is None
    assert positions_of("left lung base") == ["left_lower_lung"]
    assert positions_of("left", term_of("effusion")) == ["left_pleural"]
    assert positions_of("gallbladder") == ["other"]


@pytest.mark.parametrize(
    "part",
    [
        "no effusion, ",
        "effusion is not seen ",
        "left ",
        "\n ABC: ",
        "1. ",
        "\0",
        "左肺 ",
        "dr. ",
        "cannot ",
        "effusion or ",
    ],
)
def test_long_and_strange_texts_take_no_time(part):
    text = (part * 20_000)[:20_000]
    start = time.thread_time()
    label_report(text), extract_triplets(text)
    assert time.thread_time() - start < 2


def test_new_reports_are_read_fast():
    """500 reports of 60 words that were never seen: some 0.13 s of one core, with room for a slow machine."""
    rng = random.Random(0)
    words = " ".join(text for text, _ in SAID).split()
    reports = [" ".join(rng.choices(words, k=60)) for _ in range(500)]
    start = time.thread_time()
    for report in reports:
        label_report(report)
    assert time.thread_time() - start < 2
