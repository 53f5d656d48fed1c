"""Checks of single values of a study: what a JSON file or a table may hold in each field, and what it becomes.

Each function raises `ValueError` with what was found; the caller adds the place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import Any

from hf_medvlm.labels import PROGRESSIONS, TRIPLET_STATES

SECTIONS = ("findings", "impression", "report", "indication", "comparison")
"""The parts of a study's text, by the names that `--sections` and `Study.text` take."""

ALL_TEXT = "findings,impression|report"
"""Findings and impression, or the whole report of a study that has neither."""

ANSWER_TYPES = ("CLOSED", "OPEN")
"""Kinds of a question's answer, VQA-RAD's names: yes or no or one of a few, and anything else."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What others call a split. `dev` is validation, but only beside a `train`: alone it is no split."""

Turns = tuple[Mapping[str, str], ...]
Triplets = tuple[tuple[str, str, str], ...]

_PATIENT = re.compile(r"(?:^|/)(?:p(\d{8})|(patient\d{4,6}))/")
_WHOLE = re.compile(r"(\d+)\.0+")
_DAY = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)")
_DAY_FIRST = re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})")
_CLOCK = re.compile(r"(\d\d):?(\d\d):?(\d\d)?(\.\d{1,6})?\d*(?:Z|[+-]\d\d:?\d\d)?")


@lru_cache(maxsize=100)
def section_alternatives(sections: str | tuple[str, ...]) -> list[tuple[str, ...]]:
    """`"findings,impression|report"` -> `[("findings", "impression"), ("report",)]`; a tuple is one alternative.

    Raises:
        ValueError: no section at all, or one that a study does not have; the message names those there are.
    """
    parts = [part.split(",") for part in sections.split("|")] if isinstance(sections, str) else [list(sections)]
    alternatives = [tuple(name.strip() for name in part if name.strip()) for part in parts]
    unknown = [name for names in alternatives for name in names if name not in SECTIONS]
    if unknown:
        raise ValueError(f"sections: {unknown[0]!r:.100} is none of {', '.join(SECTIONS)}")
    if not all(alternatives):
        raise ValueError(
            f"sections {sections!r:.100}: name at least one of {', '.join(SECTIONS)} (on each side of a '|')"
        )
    return alternatives


def id_text(value: Any, name: str) -> str:
    """An id as text. A number is one too: 123, 123.0 and "123.0" (a column that pandas made a float) are all "123".

    None, NaN and white space are "" (no id).
    """
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(text := value.strip())
        return whole[1] if whole else text
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"{name} must be a text or a number, got {value!r:.100}")
    return str(int(value)) if float(value).is_integer() else str(value)


def patient_of_path(path: str) -> str | None:
    """The patient that an image path names as MIMIC-CXR's and CheXpert's do: `p10/p10000032/s5.../x.jpg` is patient
    10000032, `train/patient00001/study1/x.jpg` patient00001; None for any other path."""
    match = _PATIENT.search(path)
    return (match[1] or match[2]) if match else None


def plain_text(value: Any, name: str) -> str:
    """A text as it is; None is ""."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r:.100}")
    return value or ""


def label_states(value: Any) -> dict[str, int | None]:
    """Finding -> state; whole floats (as Parquet and pandas give them) become integers. `Study` checks the states."""
    if not isinstance(value, Mapping):
        raise ValueError(f"labels must be an object {{finding: state}}, got {value!r:.100}")
    return {name: int(s) if isinstance(s, float) and s.is_integer() else s for name, s in value.items()}


def conversation(value: Any) -> Turns:
    """Turns `{"from": "human" or "gpt", "value": text}`; who speaks when is `conversations.check_roles`' to check."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"conversations must be a list of turns, got {value!r:.100}")
    for place, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise ValueError(
                f'conversations, turn {place} must be {{"from": speaker, "value": text}}, got {turn!r:.100}'
            )
    return tuple(dict(turn) for turn in value)


def triplets(value: Any) -> Triplets:
    """(entity, position, state) of each mention."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"triplets must be a list of [entity, position, state], got {value!r:.100}")
    for triplet in value:
        fits = isinstance(triplet, (list, tuple)) and len(triplet) == 3 and all(isinstance(w, str) for w in triplet)
        if not fits or triplet[2] not in TRIPLET_STATES:
            raise ValueError(
                f"{triplet!r:.100} is no triplet; write [entity, position, state] with a state of "
                f"{', '.join(TRIPLET_STATES)}"
            )
    return tuple((entity, position, state) for entity, position, state in value)


def progression(value: Any) -> dict[str, str]:
    """Finding -> how it changed since the prior study."""
    if not isinstance(value, Mapping):
        raise ValueError(f"progression must be an object {{finding: change}}, got {value!r:.100}")
    for finding, change in value.items():
        if change not in PROGRESSIONS:
            raise ValueError(f"progression of {finding!r:.100} is {change!r:.100}; use {', '.join(PROGRESSIONS)}")
    return dict(value)


def answer_type(value: Any) -> str:
    """`CLOSED`, `OPEN` or "", in any case."""
    kind = plain_text(value, "answer_type").strip().upper()
    if kind and kind not in ANSWER_TYPES:
        raise ValueError(f"answer_type {value!r:.100} is none of {', '.join(ANSWER_TYPES)}")
    return kind


def iso_date(text: str, time: str = "") -> str:
    """ISO 8601 of a date (`yyyymmdd`, `yyyy-mm-dd`, `dd.mm.yyyy`, with or without a time behind a space or a T).

    Args:
        time: a DICOM time beside it, `hhmmss.ffffff`, whose leading zeros may be lost ("1014.5" is 00:10:14.5).

    Raises:
        ValueError: no such day or hour; the message says what is read.
    """
    day, _, clock = text.strip().replace("T", " ").partition(" ")
    if time:
        whole, dot, fraction = time.strip().partition(".")
        clock = whole.zfill(6) + dot + fraction
    try:
        return f"{_parse_day(day)}T{_parse_clock(clock)}" if clock else _parse_day(day)
    except ValueError as error:
        shown = " ".join(filter(None, (text, time)))
        raise ValueError(f"{shown!r:.100}: {error}; use yyyymmdd or yyyy-mm-dd, hh:mm:ss") from error


@lru_cache(maxsize=100_000)
def _parse_day(text: str) -> str:
    if match := _DAY_FIRST.fullmatch(text):  # with points the day comes first, everywhere
        return date(int(match[3]), int(match[2]), int(match[1])).isoformat()
    match = _DAY.fullmatch(text)
    if not match:
        raise ValueError("no date")
    return date(int(match[1]), int(match[3]), int(match[4])).isoformat()


def _parse_clock(text: str) -> str:
    match = _CLOCK.fullmatch(text)
    if not match:
        raise ValueError("no time")
    hour, minute, second, fraction = match.groups(default="")
    if not (hour < "24" and minute < "60" and second < "61"):  # the digits are two, so text compares as numbers do
        raise ValueError("no such hour, minute or second")
    return f"{hour}:{minute}:{second or '00'}{fraction}"
