"""Report text -> what it says of each finding: state, sides, severity and change, as states of their own."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from hf_medvlm.language.cues import IMPROVED, MILD, MODERATE, RESOLVED, SEVERE, WORSE
from hf_medvlm.language.findings import findings_of
from hf_medvlm.language.mentions import events, plain, read_mentions, readable_sentences
from hf_medvlm.language.negation import ABSENT, PRESENT, UNCERTAIN, part_after

_RANK = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}
_EARLIER = re.compile(
    r"\b(?:compared (?:to|with)|interval|again (?:seen|noted|demonstrated)"
    r"|(?:prior|previous|earlier|last|preceding) (?:stud|exam|film|radiograph|chest|x-?ray|image|ct\b))"
)
_LOOKS = ("opacity", "marking", "density", "low", "prominence")
"""Entities that are "increased" to the eye, beside other lungs and not beside an earlier image."""
_SEVERITY = {None: 0, MILD: 1, MODERATE: 2, SEVERE: 3}


class Description(NamedTuple):
    """What a text says of one finding.

    Args:
        state: "present", "uncertain" or "absent", as in `label_report`.
        sides: "left" and "right", as far as the text says; both for "bilateral".
        severity: "mild" (small, trace), "moderate", "severe" (large, massive) or None where it is not said.
        change: "new", "worse", "unchanged", "improved", "resolved", or None where nothing is compared.
    """

    state: str
    sides: frozenset[str] = frozenset()
    severity: str | None = None
    change: str | None = None


@lru_cache(maxsize=1 << 15)
def _described(sentence: str) -> tuple[tuple[str, Description], ...]:
    pairs = []
    for mention in read_mentions(sentence):
        sides = frozenset(("left", "right")) if "both" in mention.sides else mention.sides
        for finding, state in findings_of(mention):
            # "the heart is normal and stable" denies an enlargement, which then has no degree
            denied = state == ABSENT != mention.state
            degree, change = (None, None) if denied else (mention.degree, mention.change)
            pairs.append((finding, Description(state, sides, degree, change)))
    return tuple(pairs)


def describe_findings(text: str) -> dict[str, Description]:
    """CheXpert finding -> what the text says of it, for the findings that it names ("No Finding" is none).

    The state is `label_report`'s. Sides are all those said of mentions with that state, the severity is the highest of
    them, the change the first.
    """
    by_finding: dict[str, Description] = {}
    for sentence in readable_sentences(text):
        for finding, new in _described(sentence):
            old = by_finding.get(finding)
            if old is None or _RANK[new.state] > _RANK[old.state]:
                by_finding[finding] = new
            elif new.state == old.state:
                severity = max(old.severity, new.severity, key=_SEVERITY.__getitem__)
                by_finding[finding] = Description(old.state, old.sides | new.sides, severity, old.change or new.change)
    return by_finding


@lru_cache(maxsize=1 << 15)
def compares(sentence: str) -> bool:
    """Whether a sentence says how something has changed, which nobody knows who saw one image alone."""
    words = plain(sentence)
    listed = events(words)
    for place, event in enumerate(listed):
        if event.value == RESOLVED:
            return True
        if event.kind == "change":
            named = next((later for later in part_after(listed, place + 1) if later.kind == "term"), None)
            if event.value not in (WORSE, IMPROVED) or named is None or named.value.entity not in _LOOKS:
                return True
    return bool(_EARLIER.search(words))


def comparing_sentences(text: str) -> list[str]:
    """The sentences of a report that say how something has changed since an earlier study."""
    return [sentence for sentence in readable_sentences(text) if compares(sentence)]
