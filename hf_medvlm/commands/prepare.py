"""`hf-medvlm prepare`: `recipes/prepare_data.py`, which turns a corpus into one master file of studies."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.commands.recipes import run_recipe

TAKES_ALL_WORDS = True


def run(words: Sequence[str]) -> None:
    """Hand the command line on; `hf-medvlm prepare --help` shows the recipe's own help."""
    run_recipe("prepare_data", words)
