"""`hf-medvlm evaluate`: `recipes/evaluate_run.py`, which scores a trained model on a data set."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.commands.recipes import run_recipe

TAKES_ALL_WORDS = True


def run(words: Sequence[str]) -> None:
    """Hand the command line on; `hf-medvlm evaluate --help` shows the recipe's own help."""
    run_recipe("evaluate_run", words)
