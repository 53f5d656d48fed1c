"""Scores: the table, the results file; evaluation of text: what stands in a prediction."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.evaluation.base import Scores, without_nan
from hf_medvlm.evaluation.text import TextEvaluation

NORMAL = "The heart is normal in size. No pleural effusion."
SICK = "Large left pleural effusion. Cardiomegaly."


class Targets:
    def target(self, study: Study) -> str:
        return study.findings


def studies(*texts: str) -> list[Study]:
    return [Study(f"s{i}", f"p{i}", images=(StudyImage("a.png", "PA"),), findings=text) for i, text in enumerate(texts)]


def test_nan_becomes_null_and_the_file_is_json():
    scores = Scores({}, n=2, intervals={"b": (0.1, math.nan)})
    scores.add({"a": math.nan, "b": np.float64(0.5)}, "Text", "as it is")
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["metrics"] == {"a": None, "b": 0.5}
    assert without_nan({"x": [float("inf"), (1, math.nan)]}) == {"x": [None, [1, None]]}


def test_the_table_has_a_line_a_metric_and_a_column_a_baseline():
    table = Scores(
        {"bleu4": 0.25}, n=2, baselines={"shuffled": {"bleu4": 0.1}}, intervals={"bleu4": (0.2, 0.3)}
    ).table()
    assert (
        "bleu4" in table and "0.250" in table and "0.200 to 0.300" in table and "shuffled" in table and "0.100" in table
    )


def test_text_scores_stand_beside_their_baselines_and_name_their_protocol():
    evaluation = TextEvaluation(Targets(), tokenizer=None, train_reports=[NORMAL, NORMAL, SICK])
    references = [NORMAL, SICK, SICK, NORMAL]
    scores = evaluation.score_reports(references, references, studies(*references))
    assert scores.metrics["bleu4"] == pytest.approx(1) and scores.metrics["findings_f1_micro"] == pytest.approx(1)
    assert set(scores.baselines) == {"constant_normal", "most_frequent", "shuffled"}
    for baseline in scores.baselines.values():
        assert baseline["findings_f1_micro"] < 1 and baseline["cider"] < scores.metrics["cider"]
    assert set(scores.metrics) <= set(scores.protocol)
    low, high = scores.intervals["findings_f1_micro"]
    assert low <= scores.metrics["findings_f1_micro"] <= high
    first = scores.predictions[1]
    assert (first["study_id"], first["view"], first["findings_reference"]["Pleural Effusion"]) == ("s1", "PA", 1)
    assert first["scores"]["findings_f1"] == 1


def test_the_same_sentence_for_every_study_is_shown_as_such():
    evaluation = TextEvaluation(Targets(), tokenizer=None, train_reports=[NORMAL])
    scores = evaluation.score_reports([NORMAL] * 4, [NORMAL, SICK, SICK, NORMAL], studies(NORMAL, SICK, SICK, NORMAL))
    assert scores.metrics["distinct_predictions"] == 0.25
    assert scores.metrics["bleu4"] == pytest.approx(scores.baselines["shuffled"]["bleu4"])
