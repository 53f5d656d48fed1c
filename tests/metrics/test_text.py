"""The text metrics as users call them: golden values, edge cases, intervals, baselines, nothing written."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_medvlm import metrics
from hf_medvlm.metrics import text
from hf_medvlm.metrics.meteor import meteor
from hf_medvlm.metrics.text import CONSTANT_NORMAL_REPORT, NAMES, score_texts, text_baselines

GOLDEN = {
    "synthetic reports": Path(__file__).parents[1] / "golden" / "text_metrics" / "text_synthetic.json",
    "Indiana University": Path(__file__).parents[3] / "shared" / "golden" / "text_metrics" / "text_dev.json",
}
PREDICTIONS = ["The heart is normal. No effusion.", "Left pleural effusion.", "Lungs are clear.", "Small nodule."]
REFERENCES = ["The heart is normal. No pneumothorax.", "Small left effusion.", "The lungs are clear.", "No nodule."]
ALL_NAMES = {*(f"bleu{n}" for n in range(1, 5)), "sacrebleu", *text.ROUGE_NAMES, "meteor", "cider"}


def compute(name, predictions, references, **options):
    return metrics.load(name, **options).compute(predictions=predictions, references=references)


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request):
    path = GOLDEN[request.param]
    if not path.exists():
        pytest.skip("these reports may not be copied into the project")
    return json.loads(path.read_text())


def test_golden_values_of_evaluate(golden):
    pair = golden["predictions"], golden["references"]
    bleu = compute("bleu", *pair)
    for key, value in golden["bleu"].items():
        assert bleu[key] == pytest.approx(value, abs=1e-9), key
    assert bleu["bleu4"] == bleu["bleu"]
    sacre = compute("sacrebleu", *pair)
    assert sacre["score"] == pytest.approx(golden["sacrebleu"]["score"], abs=1e-6)
    assert sacre["sacrebleu"] == pytest.approx(golden["sacrebleu"]["score"] / 100, abs=1e-8)
    rouge = compute("rouge", *pair)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert rouge[name] == pytest.approx(golden["rouge"][name], abs=1e-9)
    assert compute("meteor", *pair)["meteor"] == pytest.approx(golden["meteor"], abs=1e-6)
    first = [meteor(p, r) for p, r in zip(pair[0][:20], pair[1][:20], strict=True)]
    assert first == pytest.approx(golden["meteor_first20"], abs=1e-9)


def test_golden_values_of_pycocoevalcap(golden):
    pair = golden["predictions"], golden["references"]
    bleu = compute("bleu", *pair, cleaning="coco")
    assert [bleu[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(golden["coco"]["bleu1..4"], abs=1e-9)
    assert compute("rouge", *pair, cleaning="coco")["rougeL"] == pytest.approx(golden["coco"]["rouge_l"], abs=1e-9)
    assert compute("cider", *pair)["cider"] == pytest.approx(golden["coco"]["cider"], abs=1e-6)


@pytest.mark.parametrize("cleaning", [None, "coco", "r2gen"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "predictions, references",
    [
        ([""], ["no effusion"]),
        (["no effusion"], [""]),
        (["", ""], ["", ""]),
        (["one study"], ["one study"]),
        (["肺 ist groß 🫁 \u0000 \n\n", "\u200b"], ["肺 is groß. œdème", "."]),
        ([" . . . "], ["!?"]),
        (["word " * 5000], ["word other " * 3000]),
    ],
)
def test_strange_texts_have_defined_scores(name, predictions, references, cleaning):
    scores = compute(name, predictions, references, cleaning=cleaning)
    assert scores.pop("protocol")
    top = {"cider": 10, "score": 100, "translation_length": 1e6, "reference_length": 1e6, "length_ratio": 1e6}
    if name == "sacrebleu":
        top |= {"precisions": 100} | dict.fromkeys(("counts", "totals", "sys_len", "ref_len"), 1e6)
    for key, values in scores.items():
        assert np.all((np.array(values) >= 0) & (np.array(values) <= top.get(key, 1) + 1e-9)), key


@pytest.mark.parametrize("name", NAMES)
def test_no_study_is_undefined_not_zero(name):
    scores = compute(name, [], [])
    assert {key for key, value in scores.items() if key in ALL_NAMES and np.isnan(value)} == ALL_NAMES & set(scores)


def test_one_reference_or_a_list_of_one_is_the_same_and_a_second_can_only_help():
    for name in NAMES:
        once = compute(name, PREDICTIONS, REFERENCES)
        assert compute(name, PREDICTIONS, [[text] for text in REFERENCES]) == once
    both = [[text, prediction] for text, prediction in zip(REFERENCES, PREDICTIONS, strict=True)]
    assert compute("rouge", PREDICTIONS, both)["rougeL"] == compute("bleu", PREDICTIONS, both)["bleu1"] == 1


def test_each_protocol_says_what_was_done():
    expected = {
        "bleu": "13a",
        "sacrebleu": "sacreBLEU",
        "rouge": "rouge-score",
        "meteor": "Treebank",
        "cider": "CIDEr-D",
    }
    for name, word in expected.items():
        assert word in compute(name, PREDICTIONS, REFERENCES)["protocol"]
        assert "R2Gen" in compute(name, PREDICTIONS, REFERENCES, cleaning="r2gen")["protocol"]
    assert "beta 1.2" in compute("rouge", PREDICTIONS, REFERENCES, cleaning="r2gen")["protocol"]


def test_nothing_is_written_and_evaluate_load_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = evaluate.load(text.__file__, "cider", cache_dir=str(tmp_path / "metrics"))
    for start in range(0, 4, 2):
        loaded.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    assert not (tmp_path / "metrics").exists()
    assert loaded.compute() == compute("cider", PREDICTIONS, REFERENCES)
    assert not (tmp_path / "metrics").exists()


def test_metrics_combine():
    both = evaluate.combine([metrics.load("meteor"), metrics.load("bleu")])
    assert {"meteor", "bleu4"} <= set(both.compute(predictions=PREDICTIONS, references=REFERENCES))


def test_score_texts_gives_every_name_and_agrees_with_the_metrics():
    scores = score_texts(PREDICTIONS, REFERENCES, ["a", "a", "b", "c"])
    assert set(scores.metrics) == set(scores.protocol) == set(scores.intervals) == ALL_NAMES
    for group in NAMES:
        of_group = compute(group, PREDICTIONS, REFERENCES)
        assert {n: of_group[n] for n in ALL_NAMES & set(of_group)} == {
            n: scores.metrics[n] for n in ALL_NAMES & set(of_group)
        }
    for name, values in scores.per_study.items():
        assert len(values) == 4
        if name in scores.metrics:
            assert np.mean(values) == pytest.approx(scores.metrics[name])
    for name, (low, high) in scores.intervals.items():
        assert low <= scores.metrics[name] <= high, name


def test_corpus_bleu_is_resampled_as_a_corpus_metric():
    patients = list("abcd")
    low, high = score_texts(PREDICTIONS, REFERENCES, patients, resamples=400).intervals["bleu2"]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        rows = rng.integers(4, size=4)
        drawn.append(compute("bleu", [PREDICTIONS[r] for r in rows], [REFERENCES[r] for r in rows])["bleu2"])
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.08)


def test_no_resamples_no_intervals():
    assert score_texts(PREDICTIONS, REFERENCES, resamples=0).intervals == {}


def test_baselines_say_what_their_names_say():
    train = ["Lungs are clear."] * 3 + ["Other."]
    baselines = text_baselines(PREDICTIONS, REFERENCES, train)
    assert list(baselines) == ["constant_normal", "most_frequent", "shuffled"]
    assert baselines["constant_normal"] == score_texts([CONSTANT_NORMAL_REPORT] * 4, REFERENCES).metrics
    assert baselines["most_frequent"] == score_texts(["Lungs are clear."] * 4, REFERENCES).metrics
    # perfect predictions lose everything when each goes to another study
    distinct = ["alpha one", "beta two", "gamma three"]
    assert text_baselines(distinct, distinct, [])["shuffled"]["rouge1"] == 0
    assert "shuffled" not in text_baselines(["a"], ["a"], train)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        score_texts(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="row 1: .* None"):
        score_texts(["a", None], ["a", "b"])
    with pytest.raises(ValueError, match="row 0"):
        score_texts(["a"], [[]])
    with pytest.raises(ValueError, match="'r2gem'; there are None, 'coco', 'r2gen'"):
        metrics.load("rouge", cleaning="r2gem")
    with pytest.raises(ValueError, match="no text metric 'blue'"):
        text.Metric("blue")
