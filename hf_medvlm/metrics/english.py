"""Which words English has: those of WordNet 3.0, and the terms that findings are known by."""

from __future__ import annotations

import re

from hf_medvlm.language.findings_terms import TERMS
from hf_medvlm.metrics import wordnet

SHORTEST = 3
"""Letters of a word before its ending; a shorter one is spelled."""
_ENDINGS = ("", "s", "es", "ed", "ing", "ly", "al", "ally")


def english_words() -> frozenset[str]:
    """WordNet's words and those of the findings' terms, in small letters, without their endings."""
    return wordnet.load().words() | {word for term in TERMS for word in re.findall("[a-z]+", term.entity.lower())}


def is_english(word: str, english: frozenset[str]) -> bool:
    """Whether `word`, in small letters, is one of `english` with or without an ending, and holds no digit."""
    stems = [word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending)]
    stems += [f"{stem}e" for stem in stems] + [f"{word[:-3]}y" if word.endswith("ies") else word]
    return word.isalpha() and any(len(stem) >= SHORTEST and stem in english for stem in stems if stem)
