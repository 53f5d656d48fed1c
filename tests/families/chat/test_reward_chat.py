"""Chat models that learn from rewards, on TRL: what TRL is given, what it leaves, and runs that were stopped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import reward_chat
import torch
from safetensors.torch import load_file

from hf_medvlm.data.load import load_splits
from hf_medvlm.data.study import Study
from hf_medvlm.families.chat.pairs import Pair, rank, read_pairs, write_pairs
from hf_medvlm.families.chat.reward_arguments import RewardChatArguments
from hf_medvlm.families.chat.reward_recipe import reward_functions
from hf_medvlm.rewards.reward import make_reward

pytest.importorskip("trl")

SMALL = (
    "--synthetic_studies 40 --synthetic_size 64 --image_size 56 --eval_studies 3 --per_device_train_batch_size 2 "
    "--disable_tqdm True --max_new_tokens 16 --reward_samples 2 --supervised_steps 2 --logging_steps 1"
).split()
SMALL += ["--prompts", "Write the radiology report of this chest X-ray.|Report."]  # of different lengths
STUDIES = [
    Study(study_id=f"s{number}", patient_id=f"p{number}", split="train", findings=text)
    for number, text in enumerate(("Small left pleural effusion.", "The lungs are clear.", "Mild cardiomegaly."))
]


def reward():
    return make_reward("findings_f1=2,cider", lambda study: study.findings, [study.findings for study in STUDIES])


def run(folder: Path, *words: object) -> dict:
    return reward_chat.main([*SMALL, "--output_dir", str(folder), *map(str, words)])


STEPS = ("--config", "reward_chat_tiny", "--max_steps", 2)
STEPS += ("--save_steps", 1, "--eval_steps", 2, "--load_best_model_at_end", False)
STEPS += ("--reward_kl", 0.05, "--learning_rate", 1e-3)


@pytest.fixture(scope="module")
def grpo(cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grpo") / "run"
    run(folder, *STEPS)
    return folder


@pytest.mark.slow
def test_a_run_of_grpo_is_a_run_like_any_other(grpo):
    results = json.loads((grpo / "test_results.json").read_text())
    start = results["baselines"]["supervised_start"]
    assert {"reward", "cider", "findings_f1_micro", "distinct_predictions"} <= results["metrics"].keys() & start.keys()
    assert results["protocol"]["reward"].startswith("mean over studies of findings_f1 + cider")
    assert {"report.html", "README.md", "run.json", "predictions.jsonl"} <= {path.name for path in grpo.iterdir()}
    history = json.loads((grpo / "trainer_state.json").read_text())["log_history"]
    step = next(entry for entry in history if "rewards/findings_f1/mean" in entry)
    assert {
        "reward",
        "rewards/cider/std",
        "kl",
        "clip_ratio/region_mean",
        "completions/mean_length",
        "distinct",
    } <= set(step)
    assert any("eval_cider" in entry for entry in history) and any("start_cider" in entry for entry in history)
    before, after = load_file(grpo / "supervised" / "model.safetensors"), load_file(grpo / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_grpo_killed_and_resumed_ends_on_the_same_weights(grpo, tmp_path):
    run(tmp_path / "resumed", *STEPS, "--resume_from_checkpoint", grpo / "checkpoint-1")
    wanted, resumed = load_file(grpo / "model.safetensors"), load_file(tmp_path / "resumed" / "model.safetensors")
    assert wanted.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in wanted.items())


@pytest.mark.slow
def test_dpo_learns_from_a_file_by_lora_and_leaves_a_plain_model(grpo, tmp_path):
    start = grpo / "supervised"
    studies = load_splits(synthetic_studies=40, synthetic_size=64).train
    write_pairs([Pair(s.study_id, s.text(), "The lungs are clear.") for s in studies[:8]], tmp_path / "pairs.jsonl")
    run(
        *(tmp_path / "run", "--method", "dpo", "--pairs", tmp_path / "pairs.jsonl", "--model_name_or_path", start),
        *(
            "--max_steps",
            3,
            "--lora_rank",
            4,
            "--learning_rate",
            1e-2,
            "--eval_strategy",
            "no",
            "--sections",
            "findings",
        ),
    )
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    margins = [entry["rewards/margins"] for entry in history if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0.0, abs=1e-5) and margins[-1] > margins[0]
    plain = load_file(tmp_path / "run" / "model.safetensors")
    assert not any("lora" in name for name in plain)
    assert plain.keys() == load_file(start / "model.safetensors").keys()


def test_trl_is_given_each_term_and_its_weight():
    trainer = SimpleNamespace(reward=reward())
    functions, weights = reward_functions(trainer, STUDIES)
    assert [function.__name__ for function in functions] == ["findings_f1", "cider"] and weights == [2.0, 1.0]
    noted = {}
    completions = [[{"role": "assistant", "content": text}] for text in ("Mild cardiomegaly.", " Lungs are clear. ")]
    rewards = functions[0](prompts=[], completions=completions, place=[2, 1], log_metric=noted.__setitem__)
    assert rewards == [1.0, 1.0] and noted == {"distinct": 1.0}


def test_the_best_and_the_worst_report_of_a_study_are_a_pair():
    texts = [["Pneumothorax.", "Left pleural effusion.", "The lungs are clear."], ["Clear lungs."] * 3]
    assert rank(texts, STUDIES[:2], reward()) == [Pair("s0", "Left pleural effusion.", "Pneumothorax.")]


def test_pairs_are_read_and_what_cannot_be_is_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_pairs([Pair("s1", "a", "b")], file)
    assert read_pairs(file, STUDIES) == [Pair("s1", "a", "b")]
    for line, message in (
        ('{"study_id": "s9", "chosen": "a", "rejected": "b"}', "pairs.jsonl:2: study 's9' is not among"),
        ('{"study_id": "s1", "chosen": "a"}', "pairs.jsonl:2: a pair has study_id, chosen and rejected"),
        ('{"study_id": "s1", "chosen": "a", "rejected": "a "}', "the same text"),
        ("chosen", "pairs.jsonl:2: not JSON"),
    ):
        file.write_text('{"study_id": "s1", "chosen": "a", "rejected": "b"}\n' + line)
        with pytest.raises(ValueError, match=message):
            read_pairs(file, STUDIES)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no pair in it"):
        read_pairs(file, STUDIES)
    with pytest.raises(ValueError, match="No such file"):
        read_pairs(tmp_path / "none.jsonl", STUDIES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ppo"}, "choose grpo or dpo"),
        ({"pairs": "x"}, "--pairs is for --method dpo"),
        ({"use_vllm": True}, "vLLM is not installed"),
        ({"reward_baseline": "greedy"}, "leave the option out"),
        ({"reward_supervised_weight": 1.0}, "leave the option out"),
        ({"reward_samples": 1}, "needs 2 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    if "use_vllm" in options and importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(ValueError, match=message):
        RewardChatArguments(**options).check()
