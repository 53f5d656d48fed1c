"""Rewards: what reports are worth, and rewards that trivial texts would win."""

from __future__ import annotations

import numpy as np
import pytest
from clinical_weights import make_chexbert

from hf_medvlm.data.study import Study
from hf_medvlm.metrics import load
from hf_medvlm.metrics.findings_text import findings_f1
from hf_medvlm.rewards.findings import findings_reward, sentence_reward, side_change_reward
from hf_medvlm.rewards.reward import make_reward
from hf_medvlm.rewards.trivial import EVERYTHING, OWN, TWICE, judge

NORMAL = "The heart is normal in size. The lungs are clear. No pleural effusion."
EFFUSION = "Small left pleural effusion. No pneumothorax."
WORSE = "The left pleural effusion is larger than before. No pneumothorax."


def study(number: int, report: str) -> Study:
    return Study(study_id=f"s{number}", patient_id=f"p{number}", split="train", findings=report)


def target(one: Study) -> str:
    return one.findings


REPORTS = [NORMAL, EFFUSION, WORSE, "Mild cardiomegaly. No edema.", "Right upper lobe consolidation.", NORMAL]
STUDIES = [study(number, report) for number, report in enumerate(REPORTS)]


def test_findings_reward_is_the_metric_and_a_normal_study_is_rewarded():
    pairs = [(EFFUSION, WORSE), ("Cardiomegaly. Small left effusion.", EFFUSION), (EFFUSION, NORMAL), ("", EFFUSION)]
    texts, references = zip(*pairs, strict=True)
    assert findings_reward(texts, references) == findings_f1(texts, references).per_study
    assert findings_reward(["Lungs are clear."], [NORMAL]) == [1.0]  # other words, both normal
    assert findings_reward([NORMAL], ["No acute cardiopulmonary process."]) == [1.0]
    scoliosis = "Scoliosis. No pleural effusion."  # something abnormal, and none of the 14 findings
    assert np.isnan(findings_f1([scoliosis], [scoliosis]).per_study[0])
    assert findings_reward([scoliosis, "", "Thank you."], [scoliosis] * 3) == [1.0, 0.0, 0.0]


def test_sides_change_and_sentences_tell_reports_apart_that_findings_do_not():
    right = WORSE.replace("left", "right")
    assert findings_reward([right, EFFUSION], [WORSE, WORSE]) == [1.0, 1.0]
    assert side_change_reward([WORSE, right, EFFUSION], [WORSE] * 3) == pytest.approx([1.0, 2 * 2 / 6, 2 * 2 / 5])
    assert sentence_reward([EFFUSION, "Small left pleural effusion."], [EFFUSION] * 2) == pytest.approx([1.0, 2 / 3])
    assert sentence_reward([f"{EFFUSION} {EFFUSION}"], [EFFUSION])[0] < 1.0
    assert sentence_reward(["No pleural effusion. No pneumothorax."], [EFFUSION]) == [0.5]


def test_words_are_scored_as_the_metrics_score_them():
    reward = make_reward("cider=2,bleu2", target, REPORTS)
    texts = [EFFUSION, EFFUSION, NORMAL, "Mild cardiomegaly.", "", NORMAL]
    values = reward(texts, STUDIES)
    cider = load("cider").compute(predictions=texts, references=REPORTS)["cider"]
    assert 10 * values.terms["cider"].mean() == pytest.approx(cider)  # these are the training reports as well
    for text, one, value in zip(texts, STUDIES, values.terms["bleu2"], strict=True):
        whole = load("bleu").compute(predictions=[text], references=[[target(one)]], max_order=2)["bleu"]
        assert value == pytest.approx(whole, abs=1e-6)
    np.testing.assert_allclose(values.total, 2 * values.terms["cider"] + values.terms["bleu2"])
    alone = reward(texts[1:2], STUDIES[1:2]).terms["cider"]
    assert alone[0] == pytest.approx(values.terms["cider"][1])  # whatever it stands among


def test_penalties():
    values = make_reward("length,format", target, REPORTS)(
        [NORMAL, EFFUSION + " " + EFFUSION, "", "The left pleural", "Mild cardiomegaly. No", "Yes."], STUDIES
    )
    assert values.terms["length"][:3].tolist() == [0.0, -1.0, -1.0]
    assert values.terms["format"].tolist() == [0.0, -0.5, -1.0, -1.0, -1.0, 0.0]


def test_chexbert_reads_a_text_once_and_missing_weights_are_named(tmp_path):
    folder = make_chexbert(tmp_path / "chexbert")
    values = make_reward("chexbert,sembscore", target, REPORTS, folder)(REPORTS[::-1], STUDIES)
    assert values.terms["sembscore"][0] == pytest.approx(1.0) and values.terms["chexbert"][0] == 1.0
    for name in ("chexbert", "radgraph"):
        with pytest.raises(ValueError, match="CheXbert|RadGraph"):
            make_reward(name, target, REPORTS, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("findings", "there is no reward 'findings'; there are findings_f1"),
        ("", "no reward in ''"),
        ("cider=much", "'much' is no weight"),
        ("cider=0", "is no weight"),
        ("cider,cider=2", "named twice"),
        ("no_such_module:worth", "no_such_module:worth: ModuleNotFoundError"),
        ("math:worth", "math:worth: AttributeError"),
        ("math:pi", "pi is no function"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_reward(spec, target, REPORTS)


def test_any_function_is_a_reward_and_is_checked(tmp_path, monkeypatch):
    code = "def words(texts, studies):\n    return [len(t.split()) for t in texts]\n"
    code += "def short(texts, studies):\n    return [1.0]\n"
    code += "def nan(texts, studies):\n    return [float('nan')] * len(texts)\n"
    (tmp_path / "my_rewards_here.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_reward("my_rewards_here:words=0.5", target, [])(["a b", ""], STUDIES[:2]).total.tolist() == [1.0, 0.0]
    for name, message in (("short", "must give 2 numbers for 2 texts"), ("nan", "gives nan for text number 0")):
        with pytest.raises(ValueError, match=message):
            make_reward(f"my_rewards_here:{name}", target, [])(["a", "b"], STUDIES[:2])

    _, verdicts = judge(make_reward("my_rewards_here:words", target, []), STUDIES, target, REPORTS)
    assert any(verdict.stops and "pays for long reports" in verdict.text for verdict in verdicts)


def test_rewards_that_trivial_texts_win_are_found_out():
    def recall(texts, studies):  # of the findings that are there, the share that is named: pays for naming everything
        scores = []
        for text, one in zip(texts, studies, strict=True):
            there = [w for w in ("effusion", "cardiomegaly", "consolidation") if w in one.findings.lower()]
            scores.append(sum(w in text.lower() for w in there) / len(there) if there else 1.0)
        return scores

    reward = make_reward("findings_f1", target, REPORTS)
    means, verdicts = judge(reward, STUDIES, target, REPORTS)
    assert means[OWN] == 1.0 and not [verdict for verdict in verdicts if verdict.stops]
    assert [verdict.text for verdict in verdicts if TWICE in verdict.text]  # flagged: it does not see length
    assert not judge(make_reward("findings_f1,cider", target, REPORTS), STUDIES, target, REPORTS)[1]

    reward.terms = {"findings_f1": recall}
    stops = [verdict.text for verdict in judge(reward, STUDIES, target, REPORTS)[1] if verdict.stops]
    assert any(EVERYTHING in text and "pays for long reports" in text for text in stops)

    normal = [study(number, NORMAL) for number in range(9)] + STUDIES[1:2]
    means, verdicts = judge(make_reward("findings_f1,cider=0.1", target, REPORTS), normal, target, REPORTS)
    assert any("constant normal report" in verdict.text and not verdict.stops for verdict in verdicts)
    _, verdicts = judge(make_reward("findings_f1", target, REPORTS), normal[:9], target, REPORTS)
    assert any("constant normal report" in verdict.text and verdict.stops for verdict in verdicts)
