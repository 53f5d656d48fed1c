"""Report text -> findings: CheXpert-14 states and (entity, position, state) triplets. By rules; no model, no download.

A sentence becomes a list of events (words for findings and places, cues), which is cut into clauses; each clause gives
its findings a state (`negation.py`) and a place. The words stand in `findings_terms.py`.
`python -m iu_agreement` measures the rules against the annotators of the IU corpus.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from hf_medvlm.labels import CHEXPERT_14, Finding
from hf_medvlm.language.findings_terms import (
    DEVICE_ENTITIES,
    IGNORED,
    NORMAL_ENTITIES,
    ORGANS,
    PLACES,
    SIDES,
    SIZE_FINDING,
    TERMS,
    Term,
)
from hf_medvlm.language.negation import ABSENT, EARLY_CUES, LATE_CUES, PRESENT, UNCERTAIN, Event, clauses, states
from hf_medvlm.language.sections import sentences, split_sections

Triplet = tuple[str, str, str]

STATE_CODES = {PRESENT: Finding.PRESENT, UNCERTAIN: Finding.UNCERTAIN, ABSENT: Finding.ABSENT}
_RANK = {None: 0, Finding.ABSENT: 1, Finding.UNCERTAIN: 2, Finding.PRESENT: 3}
_OPPOSITE = {PRESENT: ABSENT, ABSENT: PRESENT, UNCERTAIN: UNCERTAIN}
_HARMLESS = NORMAL_ENTITIES | DEVICE_ENTITIES | {"finding", "process"}
_NOT_READ = ("preamble", "indication", "history", "comparison", "technique", "examination", "notification", "date")

_DASHES = dict.fromkeys(range(0x2010, 0x2016), "-") | {0x2019: "'"}

# (kind, value, pattern), in the order in which they are tried at a word.
_PATTERNS: list[tuple[str, Any, str]] = [
    *(("none", None, pattern) for pattern in IGNORED),
    *((kind, None, pattern) for kind, pattern in EARLY_CUES),
    *(("term", term, term.pattern) for term in TERMS),
    *(("place", tuple(organs.split("+")), pattern) for pattern, organs in PLACES),
    *(("side", side, pattern) for pattern, side in SIDES),
    *((kind, None, pattern) for kind, pattern in LATE_CUES),
]
# One alternation without groups, 20 times as fast as one that says which pattern matched; `_meaning` asks that.
_WORDS = re.compile(rf"(?<!\w)(?:{'|'.join(pattern for *_, pattern in _PATTERNS)})(?!\w)|[,;]")
_COMPILED = [(kind, value, re.compile(pattern)) for kind, value, pattern in _PATTERNS]


@lru_cache(maxsize=1 << 14)
def _meaning(words: str) -> tuple[Event, ...]:
    kind, value = next((kind, value) for kind, value, pattern in _COMPILED if pattern.fullmatch(words))
    if kind == "none":
        return ()
    return (Event(kind, value),)


def _events(text: str) -> list[Event]:
    return [event for match in _WORDS.finditer(text) for event in _meaning(match[0])]


def _bind(clause: Sequence[Event]) -> Iterator[tuple[int, Term, list[Event]]]:
    """(index, term, places and sides that belong to it) for each term of a clause.

    A place belongs to the next term where nothing divides them ("left base opacity") or where it is the clause's
    subject ("the heart is enlarged"), else to the terms before it ("atelectasis and consolidation in the left base").
    """
    bound: dict[int, list[Event]] = {}
    waiting: list[Event] = []  # places since the last term, verb, conjunction or cue
    last: list[Event] = []  # the places of the last term that had some
    joined: list[int] = []  # the last term and those before it in one list, as long as they have no place
    for index, event in enumerate(clause):
        if event.kind == "term":
            listed = joined and clause[index - 1].kind in ("and", "or") and not waiting
            joined = [*joined, index] if listed else [index]
            # What has no place of its own is said of the last thing named ("the heart is borderline enlarged").
            bound[index], waiting, last = waiting or ([] if event.value.organ else list(last)), [], waiting or last
        elif event.kind in ("place", "side"):
            waiting.append(event)
        elif waiting and bound and event.kind.startswith(("verb", "and", "or", "doubt", "denial")):
            _give(bound, joined, waiting)
            waiting = []
    if bound:
        _give(bound, joined, waiting)
    return ((index, clause[index].value, events) for index, events in bound.items())


def _give(bound: dict[int, list[Event]], joined: Sequence[int], places: Sequence[Event]) -> None:
    for index in joined:
        if index == joined[-1] or not bound[index]:
            bound[index].extend(places)


def _organs(term: Term, bound: Sequence[Event]) -> list[str]:
    """Where a mention lies, as keys of `ORGANS`; none where the text does not say."""
    said = list(dict.fromkeys(organ for event in bound if event.kind == "place" for organ in event.value))
    if term.named or term.organ == "pleural" and bound or term.organ and bound and not said:
        return [term.organ]
    return said


def _positions(organs: Sequence[str], bound: Sequence[Event]) -> list[str]:
    """MedKLIP positions of a mention; both sides of the bases and apices have one name together."""
    sides = {event.value for event in bound if event.kind == "side"}
    both = "both" in sides or len(sides) == 2
    found = []
    for organ in organs:
        left, right, unsaid = ORGANS["lung" if organ == "pulmonary" and sides else organ]
        if both:
            found += [unsaid] if organ in ("base", "apex") else [left, right]
        else:
            found.append(left if "left" in sides else right if "right" in sides else unsaid)
    return list(dict.fromkeys(found)) or ["unspecified"]


def _said_of(term: Term, organs: Sequence[str], state: str) -> Iterator[tuple[str, str]]:
    """(CheXpert finding, state) pairs that a mention with this state says."""
    if term.finding:
        yield term.finding, state
    for organ in SIZE_FINDING:
        if organ not in organs:
            continue
        if term.entity in ("enlarge", "borderline") or (term.entity, organ) == ("widen", "mediastinal"):
            yield SIZE_FINDING[organ], state
        elif term.entity in ("normal", "unremarkable"):
            yield SIZE_FINDING[organ], _OPPOSITE[state]
    if term.entity == "clear" and state == PRESENT and (not organs or "lung" in organs):
        yield "Lung Opacity", ABSENT


@lru_cache(maxsize=1 << 15)
def _read(sentence: str) -> tuple[tuple[Triplet, ...], tuple[tuple[str, str], ...]]:
    """(triplets, (CheXpert finding, state) pairs) of a lower-cased sentence; kept, since reports repeat themselves."""
    triplets: list[Triplet] = []
    said: list[tuple[str, str]] = []
    for clause in clauses(_events(sentence)):
        state_of = states(clause)
        for index, term, bound in _bind(clause):
            # "borderline heart size" is a doubt; "borderline cardiomegaly" is one of a degree, and stays present.
            state = UNCERTAIN if term.entity == "borderline" and state_of[index] == PRESENT else state_of[index]
            organs = _organs(term, bound)
            triplets += [(term.entity, position, state) for position in _positions(organs, bound)]
            said += _said_of(term, organs, state)
    return tuple(triplets), tuple(said)


def term_of(words: str) -> Term | None:
    """The first term of the lexicon in some words, or None: "left effusions" has the one whose entity is "effusion"."""
    return next((event.value for event in _events(words.lower()) if event.kind == "term"), None)


def positions_of(words: str, term: Term | None = None) -> list[str]:
    """MedKLIP's positions for the words of a place ("left lung base": "left_lower_lung"), where `term` lies.

    The term says what "left" alone is left of. A place that the lexicon does not know is "other".
    """
    bound = [event for event in _events(words.lower()) if event.kind in ("place", "side")]
    if term:
        organs = _organs(term, bound)
    else:
        organs = [organ for event in bound if event.kind == "place" for organ in event.value]
    return _positions(organs or ["other"], bound)


def _read_text(text: str) -> Iterator[tuple[tuple[Triplet, ...], tuple[tuple[str, str], ...]]]:
    for section in split_sections(text):
        if section.name not in _NOT_READ:
            plain = unicodedata.normalize("NFKC", section.text).translate(_DASHES).lower()
            yield from map(_read, sentences(plain))


def extract_triplets(text: str) -> list[Triplet]:
    """The (entity, position, "present" | "absent" | "uncertain") triplets of a text, in reading order, each once.

    Entities and positions are MedKLIP's (`labels.MEDKLIP_ENTITIES`, `MEDKLIP_POSITIONS`). A text in MIMIC-CXR's layout
    is read without its indication, history, comparison and technique.
    """
    return list(dict.fromkeys(triplet for triplets, _ in _read_text(text) for triplet in triplets))


def label_report(text: str) -> dict[str, int | None]:
    """CheXpert-14 name -> 1 present, 0 absent, -1 uncertain, None not mentioned.

    Where a text says several things of a finding, present wins over uncertain, and uncertain over absent. "No Finding"
    is 1 where something was read and nothing abnormal (support devices apart) is present or uncertain, else None; it is
    stricter than CheXpert's, which looks at its own findings only. Sections as in `extract_triplets`.
    """
    labels: dict[str, int | None] = dict.fromkeys(CHEXPERT_14)
    read, normal = False, True
    for triplets, said in _read_text(text):
        read |= bool(triplets)
        normal &= all(s == ABSENT or entity in _HARMLESS for entity, _, s in triplets)
        for finding, state in said:
            normal &= state == ABSENT or finding == "Support Devices"
            labels[finding] = max(labels[finding], int(STATE_CODES[state]), key=_RANK.__getitem__)
    if read and normal:
        labels["No Finding"] = int(Finding.PRESENT)
    return labels
