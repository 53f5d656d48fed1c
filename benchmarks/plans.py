"""Shipped plans at their published sizes, with made-up weights in the published layout: `--dry_run`, then two steps.

    OMP_NUM_THREADS=1 python benchmarks/plans.py [PLAN ...] [--dry_run]

Without names: all that train within 24 GiB on a CPU. Each runs in a process of its own, with batch 1, or 2 where there
is a contrast, on 24 synthetic studies of which 2 are evaluated; nothing else of the plan is changed. Printed for each:
how many parameters, the CPU seconds of the dry run and of the run (loading, two steps, evaluation of both splits,
saving), the peak of memory, the losses. The plans of 4B to 13B are dry-run on the meta device in
tests/recipes/test_shipped_plans.py.

Measured on 26 November 2026, one thread of a machine that was busy with other work:

    plan                 parameters   dry run, run   peak      losses of the two steps
    train_medklip        14,464,322   19 s,  22 s    1.3 GiB   3.018 2.785 (beside it a frozen ClinicalBERT)
    finetune_biovil_t   134,939,148   18 s,  46 s    3.9 GiB   4.207 3.952
    finetune_git        176,910,906   20 s,  45 s    4.5 GiB   10.499 9.459
    train_dual_encoder  194,304,769   10 s,  30 s    4.2 GiB   0.684 0.654
    patch_ib/E          196,052,099   12 s,  66 s    4.3 GiB   1.030 0.916
    finetune_blip       223,971,644   14 s,  37 s    4.8 GiB   10.215 9.431
    finetune_git, large 394,196,026   20 s,  52 s    7.1 GiB   10.625 9.560
    finetune_blip, large 446,290,492  41 s,  97 s    8.5 GiB   10.201 9.408
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import re
import resource
import runpy
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VIT = ("google/vit-base-patch16-224-in21k", "vit")
CLINICAL_BERT = ("emilyalsentzer/Bio_ClinicalBERT", "clinical_bert")
# plan -> (recipe, what it names and the function of tests/published_layouts.py that writes it, other options)
PLANS: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "train_dual_encoder": ("train_dual_encoder", [VIT, CLINICAL_BERT], "--probe_studies 4"),
    "finetune_blip": ("finetune_blip", [("Salesforce/blip-image-captioning-base", "blip")], "--max_length 16"),
    "finetune_blip, large": (
        "finetune_blip",
        [("Salesforce/blip-image-captioning-large", "blip")],
        "--model_name_or_path Salesforce/blip-image-captioning-large --max_length 16",
    ),
    "finetune_git": ("finetune_git", [("microsoft/git-base", "git")], "--max_length 16"),
    "finetune_git, large": (
        "finetune_git",
        [("microsoft/git-large", "git")],
        "--model_name_or_path microsoft/git-large --image_size 224 --max_length 16",
    ),
    "train_medklip": ("train_medklip", [("checkpoint_final.pth", "medklip"), CLINICAL_BERT], ""),
    "finetune_biovil_t": ("finetune_biovil_t", [("microsoft/BiomedVLP-BioViL-T", "biovil_t")], ""),
    "patch_ib/E": (
        "train_patch_ib",
        [("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "biomedclip")],
        "--contrastive_batch_size 2 --probe_studies 4",
    ),
}
CONTRASTS = ("train_dual_encoder", "train_patch_ib", "finetune_biovil_t")
FEW = "--synthetic_studies 24 --eval_studies 2 --dataloader_num_workers 0 --disable_tqdm True --max_steps 2"
FEW += " --gradient_accumulation_steps 1 --per_device_eval_batch_size 1 --eval_strategy steps --save_strategy no"
FEW += " --eval_steps 100 --load_best_model_at_end False --logging_steps 1 --output_dir run"


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """What a function gives, run in a process of its own, a fork of this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *given).result()


def write(names: list[tuple[str, str]]) -> None:
    """What a plan names: into the Hub cache, or here where it is a file."""
    import torch

    layouts = importlib.import_module("published_layouts")
    torch.manual_seed(0)
    for name, kind in names:
        make = partial(getattr(layouts, kind), full=True, **({"large": True} if name.endswith("large") else {}))
        if "/" in name:
            layouts.in_cache(Path(os.environ["HF_HUB_CACHE"]), name, make)
        else:
            make(Path(name))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main_of(plan: str) -> Callable[[list[str]], Any]:
    return runpy.run_path(str(ROOT / "recipes" / f"{PLANS[plan][0]}.py"))["main"]


def run(plan: str, words: list[str], dry_run: bool) -> str:
    """Start a plan, and say what came of it."""
    main = main_of(plan)
    begun, shown = cpu_seconds(), io.StringIO()
    with contextlib.redirect_stdout(shown):
        main([*words, "--dry_run"])
    size = re.search(r"([\d,]+) parameters", shown.getvalue())
    line = f"{size[1] if size else '?':>12} parameters, dry run {cpu_seconds() - begun:.0f} s"
    if not dry_run:
        begun = cpu_seconds()
        with contextlib.redirect_stdout(shown):
            main(words)
        history = json.loads(Path("run/trainer_state.json").read_text())["log_history"]
        losses = " ".join(f"{entry['loss']:.3f}" for entry in history if "loss" in entry)
        line += f", run {cpu_seconds() - begun:.0f} s, losses {losses}"
    return f"{line}, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def start(plan: str, dry_run: bool) -> str:
    recipe, names, more = PLANS[plan]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        batch = "2" if recipe in CONTRASTS else "1"
        words = ["--config", plan.partition(",")[0], *more.split(), *FEW.split()]
        try:
            alone(write, names)
            return alone(run, plan, [*words, "--per_device_train_batch_size", batch], dry_run)
        except (Exception, SystemExit) as error:  # the other plans are tried all the same
            return f"FAILED: {type(error).__name__}: {error}"
        finally:
            os.chdir(ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="*", metavar="PLAN", help=f"by default all: {'; '.join(PLANS)}")
    parser.add_argument("--dry_run", action="store_true", help="stop after the preflight")
    options = parser.parse_args()
    unknown = set(options.plans) - set(PLANS)
    if unknown:
        parser.error(f"no plan {', '.join(sorted(unknown))}; there are {'; '.join(PLANS)}")
    failed = False
    with tempfile.TemporaryDirectory() as hub:
        os.environ |= {"HF_HUB_CACHE": hub, "HF_HUB_OFFLINE": "1"}  # before huggingface_hub is imported
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        importlib.import_module("published_layouts")  # once for all, before the forks
        for plan in options.plans or PLANS:
            main_of(plan)  # imported before the forks, too
            result = start(plan, options.dry_run)
            failed |= result.startswith("FAILED")
            print(f"{plan:20} {result}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
