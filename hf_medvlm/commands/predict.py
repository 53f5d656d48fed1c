"""`hf-medvlm predict`: `recipes/predict.py`, which applies a trained model to images without reports."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.commands.recipes import run_recipe

TAKES_ALL_WORDS = True


def run(words: Sequence[str]) -> None:
    """Hand the command line on; `hf-medvlm predict --help` shows the recipe's own help."""
    run_recipe("predict", words)
