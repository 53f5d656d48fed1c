"""Which degree ("small") and which change ("unchanged") of a clause belongs to which of its findings."""

from __future__ import annotations

from collections.abc import Sequence

from hf_medvlm.language.cues import RESOLVED
from hf_medvlm.language.negation import Event, part_after

KINDS = ("degree", "change")
Qualifiers = dict[int, dict[str, str]]
"""Index of a term in its clause -> "degree" and "change", where the text says them."""


def qualifiers(clause: Sequence[Event]) -> Qualifiers:
    """What a clause says of each of its terms.

    A degree or change belongs to the term behind it in the same part ("small left effusion"), else to the terms before
    it that have none ("effusion and edema are unchanged").
    """
    of_terms: Qualifiers = {}
    waiting: dict[str, str] = {}
    for index, event in enumerate(clause):
        if event.kind == "term":
            of_terms[index], waiting = waiting, {}
        elif event.kind in KINDS and event.value:
            if of_terms and not any(later.kind == "term" for later in part_after(clause, index + 1)):
                give(of_terms, event)
            else:
                waiting.setdefault(event.kind, event.value)
    return of_terms


def give(of_terms: Qualifiers, event: Event) -> None:
    """Say it of all terms of which the like is not said yet."""
    for known in of_terms.values():
        known.setdefault(event.kind, event.value)


def is_resolved(clause: Sequence[Event], index: int) -> bool:
    """Whether the denial of the term at `index` says that it was there before: the last one before it that looks
    forward, else the first one behind it. -1 asks of what stands before the whole clause."""
    before = (clause[place] for place in range(index - 1, -1, -1))  # from the term outwards
    behind = (clause[place] for place in range(index + 1, len(clause)))
    governing = next((event for event in before if event.kind in ("deny", "deny_either", "deny_aside")), None)
    if governing is None:
        governing = next((event for event in behind if event.kind in ("deny_back", "deny_either", "deny_aside")), None)
    return governing is not None and governing.value == RESOLVED
