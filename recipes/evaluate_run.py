"""Score any trained model on any data set, or draw a run's figures and report page again.

    python recipes/evaluate_run.py --model_name_or_path runs/finetune_blip/1 --dataset master.jsonl \\
        --image_folder images
    python recipes/evaluate_run.py --figures_only runs/finetune_blip/1

The family is read from the model's config.json; every option of the family's own recipe is taken.
"""

import re
import runpy
import sys
from pathlib import Path

from hf_medvlm.families import recipes
from hf_medvlm.figures import draw_all
from hf_medvlm.figures.report import write_report
from hf_medvlm.models.convert.checkpoint import describe_checkpoint, read_state_dict
from hf_medvlm.models.loading import model_type_of
from hf_medvlm.models.upstream import OLD_PREFIX
from hf_medvlm.training.folders import choose_output_dir
from hf_medvlm.training.run import run

DUAL = "train_dual_encoder"


def option_of(argv: list[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, None where it is not there."""
    words = [part for word in argv for part in word.split("=", 1)]
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words[:-1] else None


def recipe_of(path: str) -> str:
    """The recipe that scores a run's model, or a published one, whatever its layout."""
    here = Path(path)
    if "," in path or (here / "open_clip_config.json").is_file():
        return DUAL  # two towers, or open_clip's layout
    files = [here] if here.is_file() else sorted(here.glob("*image*.pt"))
    files = files or ([] if (here / "config.json").is_file() else sorted(here.glob("*.pt*")))
    if files:
        keys = read_state_dict(files[0])
        marks = {"res_features.": "train_medklip", "projector.model.": "finetune_biovil_t", "visual.": DUAL}
        fitting = [recipe for mark, recipe in marks.items() if any(key.startswith(mark) for key in keys)]
        if not fitting:
            raise ValueError(f"{files[0]}: this is {describe_checkpoint(keys)}; no recipe evaluates it")
        return fitting[0]
    model_type = (model_type_of(path) or "").removeprefix(OLD_PREFIX)
    known = recipes()
    if model_type not in known:
        raise ValueError(f"no recipe evaluates a {model_type!r} model; there are {', '.join(known)}")
    return known[model_type]


def main(argv: list[str] | None = None) -> object:
    argv = list(sys.argv[1:] if argv is None else argv)
    drawn = option_of(argv, "figures_only")
    if drawn:
        draw_all(drawn)
        return write_report(drawn)
    argv = [re.sub("^--weights(?==|$)", "--model_name_or_path", word) for word in argv]
    path = option_of(argv, "model_name_or_path")
    if path is None and {"-h", "--help"} & set(argv):
        print(f"usage: evaluate_run.py --model_name_or_path RUN [options of its recipe]\n\n{__doc__}")
        sys.exit(0)
    if path is None:
        raise ValueError("name the model to score with --model_name_or_path, or a run to draw with --figures_only")
    name = recipe_of(path)
    if option_of(argv, "output_dir") is None:
        argv += ["--output_dir", choose_output_dir(None, "evaluate", None, False)]
    recipe = runpy.run_path(str(Path(__file__).parent / f"{name}.py"))
    return recipe["main"]([*argv, "--evaluate_only", "True"])


if __name__ == "__main__":
    run(main)
