"""Clinical metrics on made-up weights in the published layouts, against the values of RadEval's own code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clinical_weights import PREDICTIONS, REFERENCES, make_chexbert, make_roberta

from hf_medvlm import metrics
from hf_medvlm.metrics.clinical import NEEDS, clinical_scores
from hf_medvlm.metrics.clinical.radcliq import radcliq_v1
from hf_medvlm.metrics.clinical.radgraph import radgraph_f1
from hf_medvlm.metrics.clinical.weights import MissingWeights
from hf_medvlm.metrics.clinical.wordlists import bleu2_rexrank, temporal_f1

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "clinical" / "values.json").read_text())
PAIRS = {"predictions": PREDICTIONS, "references": REFERENCES}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    make_chexbert(folder / "chexbert")
    roberta = make_roberta(folder / "distilroberta-base")
    rows = "".join(f"{layer},0.2,0.2,0.25\n" for layer in range(7))
    (roberta / "rescale_baseline.tsv").write_text(f"LAYER,P,R,F\n{rows}")
    return folder


def test_chexbert_and_its_embeddings_are_the_reference_s(weights):
    scores = metrics.load("chexbert", weights=weights).compute(**PAIRS)
    for name in ("micro_14", "macro_14", "micro_5", "macro_5"):
        assert scores[f"chexbert_f1_{name}"] == pytest.approx(GOLDEN[f"chexbert_f1_{name}"], abs=1e-5)
    for name, value in GOLDEN["per_finding"].items():
        assert scores[f"chexbert_f1/{name}"] == pytest.approx(value, abs=1e-5)
    assert "uncertain counts as absent" in scores["protocol"]
    similar, _ = clinical_scores(["sembscore"], PREDICTIONS, REFERENCES, weights)
    assert similar.per_study["sembscore"] == pytest.approx(GOLDEN["sembscore_per_study"], abs=1e-5)
    assert (
        set(similar.values)
        == {"sembscore"}
        == set(metrics.load("sembscore", weights=weights).compute(**PAIRS)) - {"protocol"}
    )


def test_bertscore_is_the_reference_s_with_and_without_idf(weights):
    result, missing = clinical_scores(["bertscore", "bertscore_idf"], PREDICTIONS, REFERENCES, weights)
    assert not missing
    for name in ("bertscore", "bertscore_idf"):
        assert result.per_study[name] == pytest.approx(GOLDEN[f"{name}_per_study"], abs=1e-5)
        value = metrics.load(name, weights=weights).compute(**PAIRS)[name]
        assert value == pytest.approx(np.mean(GOLDEN[f"{name}_per_study"]), abs=1e-5)
    assert np.ptp(result.per_study["bertscore"]) > 0.1


def test_radcliq_is_the_reference_s():
    columns = ([0.1, 0.5, 1.0], [0.2, 0.6, 0.9], [0.3, 0.7, 0.8], [0.0, 0.4, 1.0])
    each = radcliq_v1(*map(np.array, columns))
    assert each == pytest.approx(GOLDEN["radcliq"][1:], abs=1e-8)
    assert 1 / each.mean() == pytest.approx(GOLDEN["radcliq"][0], abs=1e-8)


def entity(tokens: str, label: str = "OBS-DP", relations: tuple = ()) -> dict:
    return {"tokens": tokens, "label": label, "relations": [list(r) for r in relations]}


def test_radgraph_by_hand():
    reference = {"entities": {"1": entity("effusion", relations=[("located_at", "2")]), "2": entity("left", "ANAT-DP")}}
    prediction = {"entities": {"1": entity("effusion"), "2": entity("left", "ANAT-DP"), "3": entity("small")}}
    scores = radgraph_f1(prediction, reference)
    assert scores["radgraph_simple"] == pytest.approx(2 * 2 / 5)  # two of three and two
    assert scores["radgraph_partial"] == pytest.approx(2 * 1 / 5)  # the effusion has a relation on one side alone
    assert scores["radgraph_complete"] == pytest.approx(2 * 1 / 5)
    assert scores["radgraph_rexrank"] == pytest.approx((2 * 2 / 5 + 0) / 2)
    assert radgraph_f1(reference, reference) == dict.fromkeys(scores, 1.0)
    assert radgraph_f1({"entities": {}}, reference) == dict.fromkeys(scores, 0.0)
    capital = {"entities": {"1": entity("Effusion", relations=[("located_at", "2")]), "2": entity("left", "ANAT-DP")}}
    mixed = radgraph_f1(capital, reference)
    assert (mixed["radgraph_complete"], mixed["radgraph_simple"]) == (1.0, 0.5)  # lower case inside relations alone


def test_words_of_change_and_the_leaderboard_s_bleu2():
    assert temporal_f1("Effusion has worsened.", "Worsened effusion, new edema.") == pytest.approx(2 / 3)
    assert (temporal_f1("Clear.", "Normal."), temporal_f1("Stable.", "Normal.")) == (1.0, 0.0)
    assert bleu2_rexrank("The lungs are clear.", "The lungs are clear.") == 1
    # by hand: 3 of 4 words, 1 of 3 pairs
    assert bleu2_rexrank("a b x d", "a b c d") == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    assert metrics.load("temporal_f1").compute(**PAIRS)["temporal_f1"] > 0


def test_what_is_missing_is_named_and_has_no_score(tmp_path, weights):
    result, missing = clinical_scores(list(NEEDS), PREDICTIONS, REFERENCES, tmp_path)
    assert set(result.values) == {"temporal_f1", "bleu2_rexrank"}
    assert set(missing) == set(NEEDS) - {"temporal_f1", "bleu2_rexrank"}
    assert "chexbert.pth" in missing["chexbert"] and str(tmp_path) in missing["chexbert"]
    _, missing = clinical_scores(["radcliq", "chexbert"], PREDICTIONS, REFERENCES, weights)
    assert list(missing) == ["radcliq"] and "RadGraph" in missing["radcliq"]
    with pytest.raises(MissingWeights, match="no weights folder was named"):
        metrics.load("bertscore").compute(**PAIRS)
    with pytest.raises(ValueError, match="'chexbart'; there are chexbert"):
        clinical_scores(["chexbart"], [], [])


@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_checkpoint_that_is_none_is_one_line(tmp_path, content):
    folder = make_chexbert(tmp_path / "chexbert")
    path = folder / "chexbert.pth"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=r"chexbert\.pth cannot be read as weights"):
        metrics.load("chexbert", weights=tmp_path).compute(**PAIRS)


def test_a_run_shows_the_columns_and_names_what_is_missing(weights, splits, caplog):
    from families import build

    evaluation = build("blip", splits).evaluation
    evaluation.clinical_metrics, evaluation.clinical_weights = ("chexbert", "bertscore", "radcliq"), str(weights)
    studies = splits.validate[:5]
    scores = evaluation.score_reports(PREDICTIONS, REFERENCES, studies)
    assert scores.metrics["bertscore"] == pytest.approx(np.mean(GOLDEN["bertscore_per_study"]), abs=1e-5)
    assert "radcliq_v1" not in scores.metrics and "chexbert_f1_micro_14" in scores.to_dict()["facts"]
    assert {"bertscore", "chexbert_agreement"} <= scores.predictions[0]["scores"].keys()
    assert "bertscore" in scores.table() and scores.intervals["bertscore"][0] <= scores.metrics["bertscore"]
    assert [r.getMessage() for r in caplog.records if "no radcliq: RadGraph" in r.getMessage()]
    evaluation.score_reports(PREDICTIONS, REFERENCES, studies)
    assert len([r for r in caplog.records if "no radcliq" in r.getMessage()]) == 1  # said once
