"""Chat models that learn from rewards, on TRL: what TRL is given, what it leaves, and runs that were stopped."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import chat_folders
import pytest
import reward_chat
import torch
from families import build
from launch import together
from safetensors.torch import load_file

from hf_medvlm.data.load import load_splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.families.chat.lazy_rows import lazy_rows
from hf_medvlm.families.chat.pairs import Pair, rank, read_pairs, write_pairs
from hf_medvlm.families.chat.reward_arguments import RewardChatArguments
from hf_medvlm.families.chat.reward_recipe import ChatRewardTrainer, reports_to_learn, reward_functions
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
STEPS += ("--reward_kl", 0.05, "--reward_supervised_weight", 0.5, "--learning_rate", 1e-3)
STEPS += ("--gradient_accumulation_steps", 2, "--per_device_train_batch_size", 1)


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
        "supervised",
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


@pytest.mark.parametrize("beside", [1, 2])
def test_own_reports_are_learnt_once_in_a_step_however_it_is_cut(beside):
    """TRL's shuffled micro-batches together give `weight` times the own reports' log-likelihood, a sampled token."""
    splits = load_splits(synthetic_studies=8, synthetic_size=48)
    family = build("qwen2_5_vl", splits)
    rows, collator, model = StudyRows(list(splits.train)), family.collator(False), family.model.eval()
    trainer = SimpleNamespace(
        train_dataset=rows,
        data_collator=collator,
        objective=family.objective,
        options=RewardChatArguments(reward_supervised_weight=3.0, reward_supervised_studies=beside),
        _prepare_inputs=lambda batch: batch,
    )
    last = len(rows) - 1
    marks = reports_to_learn([{"place": place} for place in (last, last, 0, 0)], samples=2)
    assert marks.tolist() == [last, -1, 0, -1]
    tokens = torch.tensor(7.0)
    cut = [marks[[1, 0]], marks[[3, 1]], marks[[2, 3]]]  # the second has none
    losses = [ChatRewardTrainer.supervised_loss(trainer, model, part, tokens) for part in cut]
    slow = torch.zeros(())
    for place in (last, 0) if beside == 1 else (last, 0, 0, 1 % len(rows)):
        batch = collator([rows[place]])
        labels = batch.pop("labels")
        log_probs = model(**batch).logits.log_softmax(-1)[0]
        for column, label in enumerate(labels[0].tolist()):
            if label != -100:
                slow = slow - log_probs[column - 1, label]
    assert losses[1] == 0
    torch.testing.assert_close(sum(losses), 3 * slow / 7)


@pytest.mark.slow
def test_grpo_under_zero3_leaves_the_file_that_the_start_is(root, tmp_path):
    """One step in two processes; names and shapes of the weights are those of the folder, as vLLM wants them."""
    start = chat_folders.llava(tmp_path / "start")
    words = [*SMALL, "--max_steps", 1, "--model_name_or_path", start, "--reward_supervised_weight", 1]
    words += ["--eval_strategy", "no", "--per_device_train_batch_size", 1, "--max_new_tokens", 4]
    zero3 = ["--deepspeed", root / "ds_configs" / "zero3.json", "--output_dir", "run"]
    together(root / "recipes" / "reward_chat.py", *words, *zero3, folder=tmp_path)
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert {name: value.shape for name, value in after.items()} == {n: value.shape for n, value in before.items()}
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert results["n"] == 3 and "supervised_start" in results["baselines"]


def test_a_data_set_for_trl_is_not_pickled_for_its_fingerprint():
    def rows(places):
        return {"prompt": [str(place) for place in places], "unreadable": [thread.name for _ in places]}

    thread = threading.Thread(name="cannot be pickled")
    table = lazy_rows(3, rows).select([2])
    assert table[0] == {"prompt": "2", "unreadable": "cannot be pickled"}


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
        ({"reward_supervised_weight": 1.0, "method": "dpo"}, "is for --method grpo"),
        ({"reward_supervised_studies": 0}, "must be 1 or more"),
        ({"reward_samples": 1}, "needs 2 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    if "use_vllm" in options and importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(ValueError, match=message):
        RewardChatArguments(**options).check()
