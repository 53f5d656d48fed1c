"""The statistics table, counted by hand and by brute force."""

import csv
import io
import random

import numpy as np

from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.data.summary import Tally, summarise, tally, to_csv, to_markdown

STUDIES = [
    Study("1", "a", "train", (StudyImage("1", "PA"), StudyImage("2", "LATERAL")), "No  effusion.", labels={"Edema": 1}),
    Study("2", "a", "train", (StudyImage("3"),), "no effusion.", labels={"Edema": -1}, prior_study_id="1"),
    Study("3", "b", "train", (StudyImage("4", "AP"),), "A large heart and an effusion.", labels={"Edema": 0}),
    Study("4", "c", "test", (StudyImage("5", "PA"),), "No effusion.", labels={"Edema": None, "Fracture": 1}),
    Study("5", "d", "test", (StudyImage("6", "PA"),), "A fracture."),
]


def test_counts_by_hand():
    splits = summarise(tally(STUDIES))["splits"]
    assert list(splits) == ["train", "validate", "test", "all"]
    train = {name: splits["train"][name] for name in ("studies", "patients", "images", "images_PA", "images_unknown")}
    assert train == {"studies": 3, "patients": 2, "images": 4, "images_PA": 1, "images_unknown": 1}
    assert splits["train"]["with_prior"] == 1 and splits["validate"]["studies"] == 0
    assert (splits["train"]["unique_texts"], splits["train"]["duplicates"]) == (2, 2)
    assert (splits["all"]["unique_texts"], splits["all"]["duplicates"]) == (3, 3)
    assert splits["train"]["words_mean"] == round(10 / 3, 1) and splits["train"]["words_max"] == 6
    assert splits["all"]["patients"] == 4 and splits["all"]["words_95"] == 6 and splits["all"]["words_median"] == 2


def test_tallies_of_parts_add_up_to_that_of_the_whole():
    parts = [tally(STUDIES[:2]), tally(STUDIES[2:4]), tally(STUDIES[4:])]
    merged = {}
    for part in parts:
        for split, counted in part.items():
            merged.setdefault(split, Tally()).add(counted)
    assert merged == tally(STUDIES)


def test_findings_by_split():
    findings = summarise(tally(STUDIES))["findings"]
    assert findings["Edema"]["train"] == {"present": 1, "absent": 1, "uncertain": 1, "not_mentioned": 0}
    assert findings["Edema"]["test"] == {"present": 0, "absent": 0, "uncertain": 0, "not_mentioned": 2}
    assert findings["Fracture"]["test"] == {"present": 1, "absent": 0, "uncertain": 0, "not_mentioned": 1}


def test_the_ceiling_is_what_a_perfect_model_reaches_when_equal_texts_are_shuffled():
    draw = random.Random(0)
    texts = [f"text {draw.randrange(30)}" for _ in range(120)]
    studies = [Study(str(n), str(n), "test", (StudyImage(str(n)),), text) for n, text in enumerate(texts)]
    split = summarise(tally(studies))["splits"]["test"]
    rng, hits = np.random.default_rng(0), {1: 0, 5: 0, 10: 0}
    for _ in range(300):
        order = rng.permutation(len(texts))
        for query, text in enumerate(texts):
            ranked = [n for n in order if texts[n] == text]  # all score alike, and above the rest
            for k in hits:
                hits[k] += query in ranked[:k]
    for k, count in hits.items():
        assert abs(split[f"ceiling_recall@{k}"] - count / 300 / len(texts)) < 0.01


def test_all_three_forms_hold_the_same_numbers():
    summary = summarise(tally(STUDIES)) | {"left_out": {"short | text": 3}, "settings": {"seed": 7}}
    rows = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert {(r["table"], r["row"], r["column"]): r["value"] for r in rows} == {
        **{("splits", n, s): str(v) for s, values in summary["splits"].items() for n, v in values.items()},
        **{
            ("findings", name, f"{split} {state}"): str(count)
            for name, by_split in summary["findings"].items()
            for split, states in by_split.items()
            for state, count in states.items()
        },
        ("left_out", "short | text", ""): "3",
    }
    text = to_markdown(summary)
    assert "| studies | 3 | 0 | 2 | 5 |" in text and "| Edema | 1 / 1 / 1 (33.3%) |" in text
    assert "| short \\| text | 3 |" in text and "| seed | 7 |" in text


def test_an_empty_set_is_all_zeros():
    summary = summarise({})
    assert summary["splits"]["all"]["studies"] == summary["splits"]["all"]["ceiling_recall@1"] == 0
    assert "| studies | 0 | 0 | 0 | 0 |" in to_markdown(summary)
