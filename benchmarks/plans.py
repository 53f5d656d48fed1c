"""Shipped plans at their published sizes, with made-up weights in the published layout: `--dry_run`, then two steps.

    python benchmarks/plans.py [PLAN ...] [--dry_run]

Without names: all that train within 24 GiB on a CPU. Each runs in a process of its own with batch 1 or 2, and says how
long it took and how much memory. The plans of 4B to 13B are dry-run in tests/recipes/test_shipped_plans.py.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import published_layouts as layouts  # noqa: E402

VIT = ("google/vit-base-patch16-224-in21k", layouts.vit)
CLINICAL_BERT = ("emilyalsentzer/Bio_ClinicalBERT", layouts.clinical_bert)
BIOMEDCLIP = ("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", layouts.biomedclip)
Layout = tuple[str, Callable[..., Any]]
# plan -> (recipe, what it names and how that is written, other options)
PLANS: dict[str, tuple[str, list[Layout], list[str]]] = {
    "train_dual_encoder": (
        "train_dual_encoder",
        [("google/vit-base-patch16-224-in21k", layouts.vit), CLINICAL_BERT],
        [],
    ),
    "finetune_blip": ("finetune_blip", [("Salesforce/blip-image-captioning-base", layouts.blip)], []),
    "finetune_blip, large": (
        "finetune_blip",
        [("Salesforce/blip-image-captioning-large", partial(layouts.blip, large=True))],
        ["--model_name_or_path", "Salesforce/blip-image-captioning-large"],
    ),
    "finetune_git": ("finetune_git", [("microsoft/git-base", layouts.git)], []),
    "finetune_git, large": (
        "finetune_git",
        [("microsoft/git-large", partial(layouts.git, large=True))],
        ["--model_name_or_path", "microsoft/git-large", "--image_size", "224"],
    ),
    "train_medklip": ("train_medklip", [("checkpoint_final.pth", layouts.medklip), CLINICAL_BERT], []),
    "finetune_biovil_t": ("finetune_biovil_t", [("microsoft/BiomedVLP-BioViL-T", layouts.biovil_t)], []),
    "patch_ib/E": ("train_patch_ib", [BIOMEDCLIP], ["--contrastive_batch_size", "2", "--probe_studies", "4"]),
}
FEW = "--synthetic_studies 24 --eval_studies 2 --dataloader_num_workers 0 --disable_tqdm True --max_steps 2"
FEW += " --gradient_accumulation_steps 1 --per_device_eval_batch_size 1 --eval_strategy steps --save_strategy no"
FEW += " --eval_steps 100 --load_best_model_at_end False --logging_steps 1"


def prepare(cache: Path, names: list[Layout]) -> None:
    """Write what a plan names: into a Hub cache, or here where it is a file."""
    import torch

    torch.manual_seed(0)
    for name, write in names:
        if "/" in name:
            layouts.in_cache(cache, name, partial(write, full=True))
        else:
            write(Path(name), full=True)


def start(plan: str, dry_run: bool) -> str:
    """Run a plan, and say what came of it."""
    recipe, names, more = PLANS[plan]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        prepare(Path(place) / "hub", names)
        batch = "2" if recipe in ("train_dual_encoder", "train_patch_ib", "finetune_biovil_t") else "1"  # a contrast
        command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--config", plan.partition(",")[0], *more]
        command += [*FEW.split(), "--per_device_train_batch_size", batch, "--output_dir", "run"]
        environment = os.environ | {"HF_HUB_CACHE": f"{place}/hub", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        shown = ""
        for words in (["--dry_run"], [])[: 1 if dry_run else 2]:
            begun = time.time()
            ended = subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
            if ended.returncode:
                return (
                    "FAILED: " + (ended.stderr.strip().splitlines() or ["killed"])[-2 if len(ended.stderr) > 1 else -1]
                )
            size = re.search(r"([\d,]+) parameters", ended.stdout)
            losses = re.findall(r"'loss': '?([\d.e+-]+)", ended.stdout)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            shown = f"{size[1] if size else '?'} parameters, {time.time() - begun:.0f} s, {peak:.1f} GiB"
            shown += f", losses {' '.join(losses)}" if losses else ", dry run"
        os.chdir(ROOT)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="*", metavar="PLAN", help=f"by default all: {'; '.join(PLANS)}")
    parser.add_argument("--dry_run", action="store_true", help="stop after the preflight")
    options = parser.parse_args()
    unknown = set(options.plans) - set(PLANS)
    if unknown:
        parser.error(f"no plan {', '.join(sorted(unknown))}; there are {'; '.join(PLANS)}")
    failed = False
    for plan in options.plans or PLANS:
        found = start(plan, options.dry_run)
        failed |= found.startswith("FAILED")
        print(f"{plan:22} {found}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
