"""What the user wrote for a model and what goes wherever it goes: prompts, and the names of what it was asked for.

A prompt may name the patient it was tried on. A push of a number that may be an id, a date, or a word that English does
not have needs the user's word. A name that English has as well is not known for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import load_json
from hf_medvlm.metrics.english import english_words, is_english

PLACES = {
    "inference.json": ("prompt", "system_prompt", "prompts", "findings", "thresholds", "held_out"),
    "config.json": ("entities", "findings", "progression_findings", "id2label"),
}
"""The file and the keys, anywhere in it, whose texts are the user's."""
_NUMBER = re.compile(r"\d{5,}|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_WORD = re.compile(r"[^\W\d_]+")
ABBREVIATION = 5
"""A word of so many capitals may be one."""
RADIOGRAPHY = frozenset(
    "abnorm cardiomediastinum cardiomediastinal mediastinal cardiophrenic costophrenic hemidiaphragm hilar "
    "retrocardiac parenchymal interstitium apices cavoatrial unspec xray roentgenogram chexpert radgraph".split()
)
"""Words of the families' own lists and of radiographers that WordNet does not have."""


def check_texts(folder: str | Path) -> None:
    """Refuse to send prompts and lists of names that may name a patient.

    Raises:
        ValueError: with the file, the text, the word in it and the way out.
    """
    english: frozenset[str] = frozenset()
    for name, text in user_texts(Path(folder)):
        english = english or english_words()
        doubt = doubtful(text, english)
        if doubt is not None:
            raise ValueError(
                f"{name} holds {text!r:.200}, which you wrote and which goes with the model; {doubt!r} in it may be "
                "somebody's name, id or date. Train with another text, or say with --hub_public_acknowledged that it "
                "may be shared"
            )


def user_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, text) of all that the user wrote and that a push of the run in `folder` sends."""
    for name, keys in PLACES.items():
        if (folder / name).is_file():
            for text in _under(load_json(folder / name), keys):
                yield name, text


def _under(value: Any, keys: Iterable[str], inside: bool = False) -> Iterator[str]:
    """The texts below one of `keys`, the names in objects there too."""
    if isinstance(value, dict):
        for key, part in value.items():
            if inside:
                yield str(key)
            yield from _under(part, keys, inside or key in keys)
    elif isinstance(value, list):
        for part in value:
            yield from _under(part, keys, inside)
    elif isinstance(value, str) and inside:
        yield value


def doubtful(text: str, english: frozenset[str]) -> str | None:
    """The first part of a text that may be an id, a date or a name; None where there is none."""
    number = _NUMBER.search(text)
    if number:
        return number[0]
    for word in _WORD.findall(text):
        short = len(word) < 4 or (word.isupper() and len(word) <= ABBREVIATION)
        if not short and word.lower() not in RADIOGRAPHY and not is_english(word.lower(), english):
            return word
    return None
