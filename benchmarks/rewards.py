"""What rewards add to a supervised model: the same studies, before and after, with paired intervals, several seeds.

    python benchmarks/rewards.py                       # tiny BLIP on made-up studies, three seeds
    python benchmarks/rewards.py --model git --seeds 1

For each seed a supervised run of the tiny model (its recipe's defaults) and, from it on, a run on rewards. The target,
on the test split: findings F1 (micro) rises by 0.05 or more with the 95 % interval of the paired difference above 0,
CIDEr falls by no more than 5 %, and the share of distinct reports by no more than a fifth. And what a step costs, in
supervised steps of as many studies, timed in turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from hf_medvlm.metrics.findings_text import findings_f1
from hf_medvlm.metrics.intervals import PairedTest, paired_test, ratio_of_sums
from hf_medvlm.training.reward_trainer import RewardTrainer
from hf_medvlm.training.trainer import MedVLMTrainer

RECIPES = {"blip": "finetune_blip", "git": "finetune_git"}


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


def step_cost(folder: Path, words: list[str], model: str) -> float:
    """Seconds of a step on rewards, in supervised steps of as many studies: both timed in turn, on the same batch."""
    recipe = importlib.import_module(RECIPES[model])
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
    parser.add_argument("--model", choices=sorted(RECIPES), default="blip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("rewards_benchmark"))
    parser.add_argument("--supervised", default="", help="more options of the supervised run: --supervised='--seed 1'")
    parser.add_argument("--rewarded", default="", help="more options of the run on rewards")
    options = parser.parse_args()
    recipe = importlib.import_module(RECIPES[options.model])
    plan = ["--config", "reward_tiny", "--dataloader_num_workers", "0"]
    reached = 0
    for seed in range(options.seeds):
        start, end = options.out / f"supervised-{seed}", options.out / f"rewarded-{seed}"
        quiet = ["--disable_tqdm", "True", "--overwrite_output_dir", "True", "--seed", str(seed)]
        if not (start / "run.json").is_file():
            recipe.main([*quiet, "--output_dir", str(start), *shlex.split(options.supervised)])
        since = time.perf_counter()
        recipe.main(
            [
                *plan,
                *quiet,
                "--model_name_or_path",
                str(start),
                "--output_dir",
                str(end),
                *shlex.split(options.rewarded),
            ]
        )
        minutes = (time.perf_counter() - since) / 60
        changes = compare(start, end)
        f1, cider, (old, new) = changes["findings_f1_micro"], changes["cider"], changes["distinct"]
        before = json.loads((start / "test_results.json").read_text())["metrics"]
        held = f1.difference >= 0.05 and f1.low > 0 and cider.difference >= -0.05 * before["cider"] and new >= 0.8 * old
        reached += held
        print(
            f"seed {seed}: findings F1 {before['findings_f1_micro']:.3f} {f1.difference:+.3f} ({f1.low:+.3f} to "
            f"{f1.high:+.3f}), CIDEr {before['cider']:.3f} {cider.difference:+.3f} ({cider.low:+.3f} to "
            f"{cider.high:+.3f}), distinct {old:.2f} -> {new:.2f}, {minutes:.1f} minutes, "
            f"{'reached' if held else 'not reached'}",
            flush=True,
        )
    same = [*plan, "--disable_tqdm", "True", "--model_name_or_path", str(options.out / "supervised-0")]
    plain = [word for word in same if word not in ("--config", "reward_tiny")] + [
        *("--synthetic_studies", "8000", "--synthetic_size", "96", "--sections", "findings"),
        *("--augment", "False", "--per_device_train_batch_size", "16"),
    ]
    print(f"a step costs {step_cost(options.out / 'timed', plain, options.model):.1f} supervised steps")
    print(f"{reached} of {options.seeds} seeds reach the target")


if __name__ == "__main__":
    main()
