"""Runs of a few steps that several tests read: each recipe is run once a session, for all of them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clinical_weights import make_roberta
from launch import call

ROOT = Path(__file__).parent.parent
STEPS = "--synthetic_studies 60 --synthetic_size 64 --image_size 32 --per_device_train_batch_size 8 --max_steps 12"
COMMON = [*STEPS.split(), "--learning_rate", "1e-2", "--dataloader_num_workers", "0"]
CAPTIONS = [*COMMON, "--max_length", "24"]
CHAT = [*COMMON, "--max_new_tokens", "24", "--eval_strategy", "no"]
CLINICAL = ["--clinical_metrics", "bertscore,chexbert", "--clinical_weights", "scorers"]
RUNS = {
    "blip": ("finetune_blip", [*CAPTIONS, *CLINICAL]),
    "git": ("finetune_git", CAPTIONS),
    "llava": ("llava_mimic", CHAT),
    "llava_lora": ("llava_mimic", [*CHAT, "--lora_enable", "True", "--lora_r", "4"]),
}


def finished_runs(folder: Path) -> Callable[[str], Path]:
    """name of `RUNS` -> the folder of its run.

    The captioners run without `--output_dir`, as a user starts them, BLIP under `accelerate launch`; what they print
    is in `stdout.txt` three folders up.
    """

    def run(name: str) -> Path:
        recipe, words = RUNS[name]
        home, script = folder / name, ROOT / "recipes" / f"{recipe}.py"
        out = home / "runs" / recipe / "1"
        if out.is_dir():
            return out
        home.mkdir()
        if name == "blip":  # weights of one of the two clinical metrics that it asks for
            make_roberta(home / "scorers" / "distilroberta-base")
        if recipe == "llava_mimic":
            runpy.run_path(str(script))["main"]([*words, "--output_dir", str(out)])
            return out
        done: Any
        if name == "blip":
            command = [sys.executable, "-m", "accelerate.commands.launch", str(script), *words]
            done = subprocess.run(command, cwd=home, timeout=1200, capture_output=True, text=True)
        else:
            done = call(script, *words, folder=home)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (home / "stdout.txt").write_text(done.stdout)
        return out

    return run
