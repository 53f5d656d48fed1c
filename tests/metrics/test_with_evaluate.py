"""What people who come from the library `evaluate` do: load a file, combine metrics, give its own keyword arguments."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_medvlm import metrics

FOLDER = Path(metrics.__file__).parent
PREDICTIONS = ["The lungs are clear. No effusion.", "Small left effusions.", "heart size is normal"]
REFERENCES = ["Lungs are clear. No pleural effusion.", "Small left pleural effusion.", "The heart is normal in size."]


def load(file: str, name: str) -> evaluate.Metric:
    return evaluate.load(str(FOLDER / f"{file}.py"), name)


@pytest.mark.parametrize("name", ["bleu", "sacrebleu", "rouge", "meteor", "cider"])
def test_a_text_metric_loaded_from_its_file_is_ours(name):
    compared = {"predictions": PREDICTIONS, "references": REFERENCES}
    assert load("text", name).compute(**compared) == metrics.load(name).compute(**compared)


OTHERS = """
import sys
import evaluate
import numpy as np

def load(name):
    return evaluate.load(f"{sys.argv[1]}/{name}.py", name)

images = np.eye(6).tolist()
assert load("retrieval").compute(predictions=images, references=images)["mean_recall"] == 1
scores = load("findings").compute(predictions=[[0.1], [0.9]], references=[[0.0], [1.0]])
assert scores["mean_auc"] == 1 and scores["mean_n"] == 1
heat, mask = np.eye(4).tolist(), (np.eye(4) > 0).tolist()
assert load("grounding").compute(predictions=[heat], references=[mask])["pointing_game"] == 1
texts = ["Small left effusion.", "Heart size is normal."]
assert load("audit").compute(predictions=texts, references=texts)["audit_omitted"] == 0
"""


def test_the_other_metrics_load_from_their_files(tmp_path):
    # in a process of its own: evaluate finds its modules by a cache folder that other tests may have changed
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", OTHERS, str(FOLDER)], capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr


def test_metrics_are_combined():
    both = evaluate.combine([load("text", "bleu"), metrics.load("rouge")])
    result = both.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["bleu"] == metrics.load("bleu").compute(predictions=PREDICTIONS, references=REFERENCES)["bleu"]
    assert "rougeL" in result and result["bleu_protocol"] != result["rouge_protocol"]


def test_bleu_with_an_order_smoothing_and_a_tokenizer():
    def compute(**keywords):
        return metrics.load("bleu").compute(predictions=PREDICTIONS, references=REFERENCES, **keywords)

    assert compute(max_order=2)["bleu"] == pytest.approx(compute()["bleu2"])
    assert compute(max_order=4)["bleu"] == pytest.approx(compute()["bleu4"])
    assert len(compute(max_order=3)["precisions"]) == 3
    assert compute(smooth=True)["bleu"] > compute()["bleu"]
    letters = compute(tokenizer=list, max_order=1)
    assert letters["translation_length"] == sum(map(len, PREDICTIONS))
    # one study by hand: 1-gram 3/4, 2-gram 1/3, add-one smoothed 4/5 and 2/4
    one = metrics.load("bleu").compute(predictions=["a b c d"], references=[["a b x d"]], max_order=2, smooth=True)
    assert one["bleu"] == pytest.approx((4 / 5 * 2 / 4) ** 0.5)


def test_rouge_with_types_stemmer_and_without_a_mean():
    def compute(**keywords):
        return metrics.load("rouge").compute(predictions=PREDICTIONS, references=REFERENCES, **keywords)

    plain = compute()
    assert compute(rouge_types=["rouge1", "rougeL"]).keys() == {"rouge1", "rougeL", "protocol"}
    for name, values in compute(use_aggregator=False).items():
        if name != "protocol":
            assert len(values) == 3 and np.mean(values) == pytest.approx(plain[name])
    assert compute(use_stemmer=True)["rouge1"] > plain["rouge1"]  # effusions, effusion
    assert compute(tokenizer=str.split)["rouge1"] < plain["rouge1"]  # "effusion." is another word than "effusions."


def test_meteor_and_sacrebleu_with_other_settings():
    from sacrebleu import corpus_bleu

    compared = {"predictions": PREDICTIONS, "references": REFERENCES}
    meteor = metrics.load("meteor")
    assert meteor.compute(**compared, alpha=0.9)["meteor"] == pytest.approx(meteor.compute(**compared)["meteor"])
    assert meteor.compute(**compared, gamma=0.0)["meteor"] > meteor.compute(**compared)["meteor"]
    lower = metrics.load("sacrebleu").compute(**compared, lowercase=True)
    assert lower["score"] == pytest.approx(corpus_bleu(PREDICTIONS, [REFERENCES], lowercase=True).score)
    usual = metrics.load("sacrebleu").compute(**compared)
    assert usual["score"] == pytest.approx(corpus_bleu(PREDICTIONS, [REFERENCES]).score) and usual["bp"] <= 1
    assert usual["counts"] == corpus_bleu(PREDICTIONS, [REFERENCES]).counts


def test_a_keyword_that_is_none_names_those_there_are():
    with pytest.raises(ValueError, match="'stemmer'.*use_stemmer"):
        metrics.load("rouge").compute(predictions=PREDICTIONS, references=REFERENCES, stemmer=True)
