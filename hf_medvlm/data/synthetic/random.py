"""Choices that come out the same on every machine and Python: all from `random()`, whose stream Python keeps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rng_for(*key: object) -> random.Random:
    """Random numbers of a key (Python seeds from text through SHA-512)."""
    return random.Random("/".join(map(str, key)))


def between(rng: random.Random, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * rng.random()


def pick(rng: random.Random, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of the options, all alike or by weight."""
    shares = weights or [1] * len(options)
    at = rng.random() * sum(shares)
    for option, share in zip(options, shares, strict=True):
        if at < share:
            return option
        at -= share
    return options[-1]
