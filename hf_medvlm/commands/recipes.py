"""Recipes as commands: the names of those that train, and a call as `python recipes/NAME.py` would make it."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_medvlm.shipped import shipped_folder

NOT_TRAINING = ("prepare_data", "evaluate_run", "predict", "score")  # commands of their own


def training_recipes() -> dict[str, str]:
    """Name -> first line of the docstring, for each recipe that `hf-medvlm train` runs. Imports none of them."""
    recipes = {}
    for path in sorted(shipped_folder("recipes").glob("*.py")):
        if path.stem not in NOT_TRAINING and not path.stem.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            recipes[path.stem] = docstring.partition("\n")[0]
    return recipes


def run_recipe(name: str, words: Sequence[str]) -> None:
    """Run `recipes/NAME.py` as a program of its own, with `words` as its command line.

    It runs under the name `__main__`, so that launchers, its own error messages and the worker processes of data
    loaders behave as they do for `python recipes/NAME.py`.
    """
    path: Path = shipped_folder("recipes") / f"{name}.py"
    before = sys.argv
    sys.argv = [str(path), *words]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
