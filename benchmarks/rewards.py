"""What rewards add to a supervised model: the same studies, before and after, with paired intervals, several seeds.

    python benchmarks/rewards.py                              # tiny BLIP on made-up studies, three seeds
    python benchmarks/rewards.py --model git --seeds 1
    python benchmarks/rewards.py --model llava --jobs 3       # seeds side by side; chat models learn on TRL

For each seed a supervised run of the tiny model (its recipe's defaults) and, from it on, a run on rewards; and beside
it, from the same start, a supervised run of as much training time, which any gain has to be held against. The target,
on the test split: findings F1 (micro) rises by 0.05 or more with the 95 % interval of the paired difference above 0,
CIDEr falls by no more than 5 %, and the share of distinct reports by no more than a fifth. And what a step of a
captioner costs, in supervised steps of as many studies, timed in turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from hf_medvlm.metrics.findings_text import findings_f1
from hf_medvlm.metrics.intervals import PairedTest, paired_test, ratio_of_sums
from hf_medvlm.training.reward_trainer import RewardTrainer
from hf_medvlm.training.trainer import MedVLMTrainer


@dataclass(frozen=True)
class Recipes:
    """The recipes of a model: supervised, and on rewards with its plan; what both need to go on from a run."""

    supervised: str
    rewarded: str
    plan: str
    going_on: str


DATA = "--synthetic_studies 8000 --synthetic_size 96 --eval_studies 300 --augment False --sections findings"
CAPTIONER = f"{DATA} --adam_beta2 0.98 --weight_decay 0.05 --lr_scheduler_type cosine --warmup_steps 0.05"
CHAT = f"{CAPTIONER} --prompts 'Describe the findings in this chest X-ray and write a report.' --max_new_tokens 96"
MODELS = {
    "blip": Recipes("finetune_blip", "finetune_blip", "reward_tiny", CAPTIONER),
    "git": Recipes("finetune_git", "finetune_git", "reward_tiny", CAPTIONER),
    "llava": Recipes("llava_mimic", "reward_chat", "reward_chat_tiny", f"{CHAT} --train all"),
    "chat": Recipes("finetune_chat", "reward_chat", "reward_chat_tiny", f"{CHAT} --train vision,connector,language"),
}


def texts(run: Path) -> dict[str, dict[str, Any]]:
    """study_id -> its line of `predictions.jsonl`."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["study_id"]: record for record in map(json.loads, lines)}


def compare(before: Path, after: Path) -> dict[str, PairedTest | tuple[float, float]]:
    """Paired differences of the test split, after less before; and the share of distinct reports of both."""
    old, new = texts(before), texts(after)
    if old.keys() != new.keys():
        raise ValueError(f"{before} and {after} were not scored on the same studies")
    studies = list(old)
    patients = [old[study]["patient_id"] for study in studies]
    references = [old[study]["reference"] for study in studies]

    def predictions(run: dict[str, dict[str, Any]]) -> list[str]:
        return [run[study]["prediction"] for study in studies]

    def cider(run: dict[str, dict[str, Any]]) -> np.ndarray:
        return np.array([run[study]["scores"]["cider"] for study in studies])

    sums = [findings_f1(predictions(run), references).sums for run in (new, old)]
    return {
        "findings_f1_micro": paired_test(*sums, patients, ratio_of_sums),
        "cider": paired_test(cider(new), cider(old), patients),
        "distinct": tuple(len(set(predictions(run))) / len(studies) for run in (old, new)),
    }


def describe(name: str, before: Path, after: Path) -> tuple[str, bool]:
    """A line of what has changed, and whether it reaches the target."""
    changes = compare(before, after)
    f1, cider, (old, new) = changes["findings_f1_micro"], changes["cider"], changes["distinct"]
    scores = json.loads((before / "test_results.json").read_text())["metrics"]
    seconds = json.loads((after / "run.json").read_text())["train_seconds"]
    reached = f1.difference >= 0.05 and f1.low > 0 and cider.difference >= -0.05 * scores["cider"] and new >= 0.8 * old
    line = (
        f"{name}: findings F1 {scores['findings_f1_micro']:.3f} {f1.difference:+.3f} ({f1.low:+.3f} to {f1.high:+.3f})"
        f", CIDEr {scores['cider']:.3f} {cider.difference:+.3f} ({cider.low:+.3f} to {cider.high:+.3f}), distinct "
        f"{old:.2f} -> {new:.2f}, {seconds / 60:.1f} minutes of training, {'reached' if reached else 'not reached'}"
    )
    return line, reached


def steps_of(run: Path, seconds: float) -> int:
    """How many more steps of a run take so many seconds."""
    facts = json.loads((run / "run.json").read_text())
    return max(round(seconds * facts["steps"] / facts["train_seconds"]), 1)


def measure(options: argparse.Namespace, seed: int) -> tuple[list[str], bool]:
    """The three runs of a seed: a line for the rewards and one for as long a supervised training."""
    recipes = MODELS[options.model]
    start, end, longer = (options.out / f"{name}-{seed}" for name in ("supervised", "rewarded", "longer"))
    quiet = ["--disable_tqdm", "True", "--overwrite_output_dir", "True", "--seed", str(seed)]
    quiet += ["--dataloader_num_workers", "0"]  # a spawned process cannot start the loader's
    going_on = [*quiet, "--model_name_or_path", str(start)]
    supervised = importlib.import_module(recipes.supervised)
    if not (start / "run.json").is_file():
        supervised.main([*quiet, "--output_dir", str(start), *shlex.split(options.supervised)])
    plan = ["--config", recipes.plan, *going_on, "--output_dir", str(end), *shlex.split(options.rewarded)]
    importlib.import_module(recipes.rewarded).main(plan)
    steps = steps_of(start, json.loads((end / "run.json").read_text())["train_seconds"])
    words = [*shlex.split(recipes.going_on), *going_on, "--learning_rate", "1e-3", "--output_dir", str(longer)]
    words += ["--max_steps", str(steps), "--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "100"]
    supervised.main([*words, *shlex.split(options.longer)])
    line, reached = describe(f"seed {seed}, rewards", start, end)
    return [line, describe(f"seed {seed}, supervised for as long", start, longer)[0]], reached


def step_cost(folder: Path, words: list[str], model: str) -> float:
    """Seconds of a step on rewards, in supervised steps of as many studies: both timed in turn, on the same batch."""
    recipe = importlib.import_module(MODELS[model].supervised)
    taken: dict[type, list[float]] = {MedVLMTrainer: [], RewardTrainer: []}
    for _ in range(2):
        for kind, more in ((MedVLMTrainer, []), (RewardTrainer, ["--reward", "findings_f1,cider"])):
            kept = kind.training_step
            start: list[float] = []

            def timed(self: Any, *args: Any, _kept: Any = kept, _start: list[float] = start, **kwargs: Any) -> Any:
                _start.append(time.perf_counter())
                return _kept(self, *args, **kwargs)

            kind.training_step = timed  # type: ignore[method-assign]
            try:
                ends = ["--max_steps", "8", "--eval_strategy", "no", "--eval_studies", "4", "--save_strategy", "no"]
                recipe.main([*words, *more, *ends, "--output_dir", str(folder), "--overwrite_output_dir", "True"])
            finally:
                kind.training_step = kept  # type: ignore[method-assign]
            taken[kind] += [later - earlier for earlier, later in zip(start[2:], start[3:], strict=False)]
    return statistics.median(taken[RewardTrainer]) / statistics.median(taken[MedVLMTrainer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="blip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at a time")
    parser.add_argument("--out", type=Path, default=Path("rewards_benchmark"))
    parser.add_argument("--supervised", default="", help="more options of the supervised run: --supervised='--seed 1'")
    parser.add_argument("--rewarded", default="", help="more options of the run on rewards")
    parser.add_argument("--longer", default="", help="more options of the supervised run of as much time")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        reached = 0
        for lines, held in pool.map(partial(measure, options), range(options.seeds)):
            print("\n".join(lines), flush=True)
            reached += held
    if MODELS[options.model].rewarded != "reward_chat":
        same = ["--disable_tqdm", "True", "--dataloader_num_workers", "0", "--per_device_train_batch_size", "16"]
        same += [*shlex.split(DATA), "--model_name_or_path", str(options.out / "supervised-0")]
        print(f"a step costs {step_cost(options.out / 'timed', same, options.model):.1f} supervised steps")
    print(f"{reached} of {options.seeds} seeds reach the target")


if __name__ == "__main__":
    main()
