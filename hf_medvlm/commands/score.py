"""`hf-medvlm score`: `recipes/score.py`, which scores any system's reports against references."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.commands.recipes import run_recipe

TAKES_ALL_WORDS = True


def run(words: Sequence[str]) -> None:
    """Hand the command line on; `hf-medvlm score --help` shows the recipe's own help."""
    run_recipe("score", words)
