"""Kinds of values that a JSON file may hold, checked when it is read: folders travel, and their files are edited.

A kind is a function of a value and of its place. It returns the value, or raises `ValueError` with what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hf_medvlm.errors import clipped

Kind = Callable[[Any, str], Any]


def _wrong(value: Any, place: str, wanted: str) -> ValueError:
    return ValueError(f"{place} must be {wanted}, found {clipped(value)}")


def number(value: Any, place: str) -> Any:
    """A number or null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300):
        if not (isinstance(value, float) and not math.isfinite(value)):
            raise _wrong(value, place, "a number or null")
    return value


def count(value: Any, place: str) -> Any:
    """A whole number or null."""
    if value is not None and (type(value) is not int or not 0 <= value < 2**53):
        raise _wrong(value, place, "a whole number or null")
    return value


def total(value: Any, place: str) -> Any:
    """A whole number."""
    if value is None:
        raise _wrong(value, place, "a whole number")
    return count(value, place)


def text(value: Any, place: str) -> Any:
    """A text, a number or null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise _wrong(value, place, "a text")
    return value


def string(value: Any, place: str) -> Any:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise _wrong(value, place, "a text")
    return value


def words(value: Any, place: str) -> Any:
    """A text or null."""
    if value is not None and not isinstance(value, str):
        raise _wrong(value, place, "a text")
    return value


def name(value: Any, place: str) -> Any:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise _wrong(value, place, "a text")
    return value


def flag(value: Any, place: str) -> Any:
    """True, false or null."""
    if value is not None and not isinstance(value, bool):
        raise _wrong(value, place, "true or false")
    return value


def length(value: Any, place: str) -> Any:
    """A whole number from 1 to 1,000,000, or null."""
    if value is not None and (type(value) is not int or not 1 <= value <= 1_000_000):
        raise _wrong(value, place, "a whole number of at least 1")
    return value


def between(low: float, high: float, whole: bool = False) -> Kind:
    """A finite number of these bounds, or null."""
    what = f"a {'whole' if whole else 'finite'} number from {low:,} to {high:,}"

    def check(value: Any, place: str) -> Any:
        kinds = (int,) if whole else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high):
            raise _wrong(value, place, what)
        return value

    return check


def state(value: Any, place: str) -> Any:
    """1, 0, -1 or null."""
    if value is not None and (isinstance(value, (bool, str)) or value not in (-1, 0, 1)):
        raise _wrong(value, place, "1, 0, -1 or null")
    return value


def anything(value: Any, place: str) -> Any:
    """What is only shown."""
    return value


def plain(value: Any, place: str) -> Any:
    """Any value, in which no number is NaN or infinite and none has more digits than 64 bits hold."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            plain(part, f"{place} {name!r:.60}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            plain(part, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _wrong(value, place, "a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise _wrong(value, place, "a number of 64 bits")
    return value


def many(kind: Kind, length: int | None = None) -> Kind:
    """A list of one kind, or null."""

    def check(value: Any, place: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, list) or length not in (None, len(value)):
            raise _wrong(value, place, "a list" if length is None else f"a list of {length}")
        return [kind(part, f"{place}[{number}]") for number, part in enumerate(value)]

    return check


def named(kind: Kind) -> Kind:
    """An object of one kind, or null."""

    def check(value: Any, place: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise _wrong(value, place, "an object")
        return {name: kind(part, f"{place} {name!r:.60}") for name, part in value.items()}

    return check


def record(needed: str = "", /, **kinds: Kind) -> Kind:
    """An object whose keys have kinds of their own; other keys are kept as they are.

    Args:
        needed: keys that must be there, divided by blanks.
    """

    def check(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(value, place, "an object")
        missing = [name for name in needed.split() if value.get(name) is None]
        if missing:
            raise ValueError(f"{place} has no {', '.join(missing)}")
        return {n: kinds[n](part, f"{place} {n!r}") if n in kinds else part for n, part in value.items()}

    return check


def either(*kinds: Kind) -> Kind:
    """The first kind that fits; the last one says what is wrong."""

    def check(value: Any, place: str) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind(value, place)
            except ValueError:
                continue
        return kinds[-1](value, place)

    return check
