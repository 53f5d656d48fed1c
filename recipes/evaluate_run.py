"""Score any trained model on any data set, or draw a run's figures and report page again.

    python recipes/evaluate_run.py --model_name_or_path runs/finetune_blip/1 --dataset master.jsonl \\
        --image_folder images
    python recipes/evaluate_run.py --figures_only runs/finetune_blip/1

The family is read from the model's config.json; every option of the family's own recipe is taken.
"""

import runpy
import sys
from pathlib import Path

from hf_medvlm.figures import draw_all
from hf_medvlm.figures.report import write_report
from hf_medvlm.models.loading import model_type_of
from hf_medvlm.models.upstream import OLD_PREFIX
from hf_medvlm.training.folders import choose_output_dir
from hf_medvlm.training.run import run

RECIPES = {
    "blip": "finetune_blip",
    "git": "finetune_git",
    "dual_encoder": "train_dual_encoder",
    "patch_ib": "train_patch_ib",
    "medklip": "train_medklip",
    "biovil_t": "finetune_biovil_t",
    "llava": "llava_mimic",
}


def option_of(argv: list[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, None where it is not there."""
    words = [part for word in argv for part in word.split("=", 1)]
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words[:-1] else None


def main(argv: list[str] | None = None) -> object:
    argv = list(sys.argv[1:] if argv is None else argv)
    drawn = option_of(argv, "figures_only")
    if drawn:
        draw_all(drawn)
        return write_report(drawn)
    path = option_of(argv, "model_name_or_path")
    if path is None and {"-h", "--help"} & set(argv):
        print(f"usage: evaluate_run.py --model_name_or_path RUN [options of its recipe]\n\n{__doc__}")
        sys.exit(0)
    if path is None:
        raise ValueError("name the model to score with --model_name_or_path, or a run to draw with --figures_only")
    found = (model_type_of(path) or "").removeprefix(OLD_PREFIX)
    if found not in RECIPES:
        raise ValueError(f"no recipe evaluates a {found!r} model; there are {', '.join(RECIPES)}")
    if option_of(argv, "output_dir") is None:
        argv += ["--output_dir", choose_output_dir(None, "evaluate", None, False)]
    recipe = runpy.run_path(str(Path(__file__).parent / f"{RECIPES[found]}.py"))
    return recipe["main"]([*argv, "--evaluate_only", "True"])


if __name__ == "__main__":
    run(main)
