"""Sentence -> mentions: each finding it names, with its state, its place, its degree and its change.

A sentence becomes a list of events (words for findings and places in `findings_terms.py`, cues in `cues.py`), which is
cut into clauses with a state for each event (`negation.py`). Here every finding of a clause gets what belongs to it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from hf_medvlm.language.cues import EARLY_CUES, LATE_CUES, RESOLVED, SIGNS
from hf_medvlm.language.findings_terms import (
    DEVICE_ENTITIES,
    IGNORED,
    NORMAL_ENTITIES,
    ORGANS,
    PLACES,
    SIDED_PLACES,
    SIDES,
    TERMS,
    ZONES,
    Term,
)
from hf_medvlm.language.negation import ABSENT, DEVICE, JOINS, NORMAL, PRESENT, UNCERTAIN, ZONE, Event, sentence_states
from hf_medvlm.language.qualifiers import KINDS, Qualifiers, give, is_resolved, qualifiers
from hf_medvlm.language.sections import readable_text, sentences

_DASHES = dict.fromkeys(range(0x2010, 0x2014), "-") | {0x2014: " - ", 0x2015: " - ", 0x2019: "'", 0x00A0: " "}
_NOT = (
    (re.compile(r"\bcan(?:not|'?t)\b"), "can not"),
    (re.compile(r"\b(is|are|was|were|has|have|had|do|does|did|could|would|should)n'?t\b"), r"\1 not"),
)
# What relatives have or had is no finding of the patient.
_RELATIVE = re.compile(
    r"(?:(?:his|her|their|the|a|one|both|patient's) )*(?:\w+ )?(?:sisters?|brothers?|siblings?|mother|father"
    r"|parents?|sons?|daughters?|aunts?|uncles?|grand(?:mother|father|parents?)|cousins?|wife|husband|relatives?"
    r"|family members?) (?:\w+ ){0,2}?(?:has|have|had|was|were|is|died|suffer\w*|with)\b",
    re.IGNORECASE,
)
_FAMILY_HISTORY = re.compile(
    r"(?:\b(?:with|has|had) )?(?:\b(?:a|an|no|strong|positive|significant|known) )*\b(?:family|familial) history"
    r"(?:(?: is| was)? (?:positive |significant |remarkable )?(?:of|for) [^.,;]*)?",
    re.IGNORECASE,
)
_QUERY = re.compile(r"(?:^|(?<=[\s(/,]))\?+\s*(?=\w)")


def _role(term: Term) -> str:
    return NORMAL if term.entity in NORMAL_ENTITIES else DEVICE if term.entity in DEVICE_ENTITIES else ""


def _place(organs: str) -> Event:
    return Event("place", tuple(organs.split("+")), ZONE if organs in ZONES else "")


def _cue(kinds: str, value: str | None, pattern: str) -> tuple[tuple[Event, ...], str]:
    return tuple(Event(kind, value) for kind in kinds.split("+")), pattern


# (events, pattern), in the order in which they are tried at a word.
_PATTERNS: list[tuple[tuple[Event, ...], str]] = [
    *(((), pattern) for pattern in IGNORED),
    *(_cue(*cue) for cue in EARLY_CUES),
    *(((Event("term", term, _role(term)),), term.pattern) for term in TERMS),
    *(((Event("side", side), _place(organ)), pattern) for pattern, side, organ in SIDED_PLACES),
    *(((_place(organs),), pattern) for pattern, organs in PLACES),
    *(((Event("side", side),), pattern) for pattern, side in SIDES),
    *(_cue(*cue) for cue in LATE_CUES),
]
_SIGNS: list[tuple[tuple[Event, ...], str]] = [_cue(*cue) for cue in SIGNS]


def _branches(pattern: str) -> list[str]:
    """The alternatives of a pattern, a group at its beginning written out: `(?:is|are) seen` gives two.

    Each then begins with a letter, and the regular expression engine passes over those of another letter at a glance.
    """
    depth, start, parts, escaped, in_class = 0, 0, [], False, False
    for place, letter in enumerate(pattern):
        if escaped or letter == "\\":
            escaped = not escaped
        elif in_class or letter == "[":
            in_class = letter != "]"
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and not depth:
            parts.append(pattern[start:place])
            start = place + 1
    parts.append(pattern[start:])
    return [branch for part in parts for branch in _without_leading_group(part)]


def _without_leading_group(pattern: str) -> list[str]:
    if not pattern.startswith("(?:"):
        return [pattern]
    depths = itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in pattern)
    end = list(depths).index(0)  # no leading group of the tables holds an escaped bracket
    group, rest = pattern[3:end], pattern[end + 1 :]
    if rest[:1] in ("*", "+", "{"):
        return [pattern]
    optional, rest = rest[:1] == "?", rest.removeprefix("?")
    written_out = [branch for inner in _branches(group) for branch in _branches(inner + rest)]
    return written_out + (_branches(rest) if optional else [])


def _by_first_letter(patterns: Sequence[str]) -> str:
    """One alternation of all patterns, sorted by their first letter; among those of one letter the order stays."""
    groups: dict[str, list[str]] = {}
    for branch in (branch for pattern in patterns for branch in _branches(pattern)):
        optional = re.match(r"([a-z])\?", branch)
        for written in [optional[1] + branch[2:], branch[2:]] if optional else [branch]:
            simple = written[:1].isalpha() and written[1:2] not in ("*", "+", "{")
            groups.setdefault(written[0] if simple else "", []).append(written[1:] if simple else written)
    others = groups.pop("", [])
    return "|".join([*(f"{letter}(?:{'|'.join(rest)})" for letter, rest in groups.items()), *others])


# One alternation without groups, 20 times as fast as one that says which pattern matched; `_meaning` asks that, once.
_ALL = [*((meant, rf"(?<!\w)(?:{pattern})(?!\w)") for meant, pattern in _PATTERNS), *_SIGNS]
_WORDS = re.compile(
    rf"(?<!\w)(?:{_by_first_letter([pattern for _, pattern in _PATTERNS])})(?!\w)"
    rf"|{'|'.join(branch for _, pattern in _SIGNS for branch in _branches(pattern))}"
)
_WHICH = re.compile("|".join(f"({pattern})" for _, pattern in _ALL))


class Mention(NamedTuple):
    """One finding that a sentence names.

    `organs` are keys of `ORGANS`, none where the text does not say; `sides` "left", "right" or "both"; `degree` and
    `change` values of `cues.py`, or None.
    """

    term: Term
    state: str
    organs: tuple[str, ...]
    sides: frozenset[str]
    degree: str | None
    change: str | None
    positions: tuple[str, ...]  # MedKLIP's


_MEANINGS: dict[str, tuple[Event, ...]] = {}


def _meaning(match: re.Match[str]) -> tuple[Event, ...]:
    """The events of some words: of the first pattern that matches them where they stand."""
    words = match[0]
    if words not in _MEANINGS:
        if len(_MEANINGS) > 1 << 15:
            _MEANINGS.clear()
        which = _WHICH.match(match.string, match.start())
        assert which is not None and which.lastindex  # the same alternatives
        _MEANINGS[words] = tuple(event for event in _ALL[which.lastindex - 1][0] if event.kind != "none")
    return _MEANINGS[words]


def events(text: str) -> list[Event]:
    """The events of a text in lower case, in order."""
    return [event for match in _WORDS.finditer(text) for event in _meaning(match)]


def plain(text: str) -> str:
    """`text` as the patterns want it: lower case, one form of each letter and dash, "isn't" as "is not"."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    lower = text.lower()
    if "n't" in lower or "cannot" in lower or "nt " in lower:
        for pattern, words in _NOT:
            lower = pattern.sub(words, lower)
    return _QUERY.sub("query ", lower) if "?" in lower else lower


_DIVIDING = ("verb", *JOINS)


def bind(clause: Sequence[Event]) -> Iterator[tuple[int, list[Event]]]:
    """(index, places and sides that belong to it) for each term of a clause.

    A place belongs to the next term where nothing divides them ("left base opacity") or where it is the clause's
    subject ("the heart is enlarged"), else to the terms before it ("atelectasis and consolidation in the left base").
    """
    bound: dict[int, list[Event]] = {}
    waiting: list[Event] = []  # places since the last term, verb, conjunction or cue
    last: list[Event] = []  # the places of the last term that had some
    joined: list[int] = []  # the last term and those before it in one list, as long as they have no place
    before = ""  # the kind of the last event that is no degree and no change
    for index, event in enumerate(clause):
        if event.kind == "term":
            listed = joined and before in JOINS and not waiting
            joined = [*joined, index] if listed else [index]
            # A term without a place is said of the place named last ("the heart is borderline enlarged").
            bound[index], waiting, last = waiting or ([] if event.value.organ else list(last)), [], waiting or last
        elif event.kind in ("place", "side"):
            waiting.append(event)
        elif waiting and bound and (event.kind in _DIVIDING or event.kind.startswith(("doubt", "deny"))):
            _give(bound, joined, waiting)
            waiting = []
        if event.kind not in ("change", "known", "degree"):
            before = event.kind
    if bound:
        _give(bound, joined, waiting)
    return iter(bound.items())


def _give(bound: dict[int, list[Event]], joined: Sequence[int], places: Sequence[Event]) -> None:
    for index in joined:
        if index == joined[-1] or not bound[index]:
            bound[index].extend(places)


def organs_of(term: Term, bound: Sequence[Event]) -> list[str]:
    """Where a mention lies, as keys of `ORGANS`; none where the text does not say."""
    named = list(dict.fromkeys(organ for event in bound if event.kind == "place" for organ in event.value))
    if term.named or term.organ == "pleural" and bound or term.organ and bound and not named:
        return [term.organ] if term.organ else []
    return named


def positions(organs: Sequence[str], bound: Sequence[Event]) -> list[str]:
    """MedKLIP positions of a mention; both sides of the bases and apices have one name together."""
    sides = {event.value for event in bound if event.kind == "side"}
    both = "both" in sides or len(sides) == 2
    listed = []
    for organ in organs:
        left, right, unsaid = ORGANS["lung" if organ == "pulmonary" and sides else organ]
        if both:
            listed += [unsaid] if organ in ("base", "apex") else [left, right]
        else:
            listed.append(left if "left" in sides else right if "right" in sides else unsaid)
    return list(dict.fromkeys(listed)) or ["unspecified"]


def _answered_elsewhere(parts: Sequence[tuple[list[Event], list[str]]], clause: int, index: int) -> str | None:
    """What becomes of a finding that heads a line ("Pneumothorax: the lungs are clear"): its state, or None.

    None where no colon follows it, and "" where the line names the same finding again, which then speaks for itself.
    A line that only says that all is well denies it.
    """
    events = parts[clause][0]
    colon = next((place for place in range(index, len(events)) if events[place].kind == "colon"), None)
    if colon is None or any(event.kind in ("verb", "deny", "doubt") for event in events[:colon]):
        return None
    line = [*zip(events[colon + 1 :], parts[clause][1][colon + 1 :], strict=True)]
    for later, later_states in parts[clause + 1 :]:
        if any(event.kind == "colon" for event in later):
            break
        line += zip(later, later_states, strict=True)
    terms = [(event, state) for event, state in line if event.kind == "term"]
    heading = events[index].value
    if any(
        event.value.entity == heading.entity or event.value.finding == heading.finding is not None for event, _ in terms
    ):
        return ""
    if terms and all(event.role == NORMAL and state == PRESENT for event, state in terms):
        return ABSENT
    return None


@lru_cache(maxsize=1 << 15)
def read_mentions(sentence: str) -> tuple[Mention, ...]:
    """The mentions of one sentence, in order; kept, since reports repeat themselves."""
    mentions = []
    parts = sentence_states(events(plain(sentence)))
    clause_qualifiers = _qualified([clause for clause, _ in parts])
    for number, (clause, states) in enumerate(parts):
        last_colon = max((place for place, event in enumerate(clause) if event.kind == "colon"), default=-1)
        for index, bound in bind(clause):
            term, state = clause[index].value, states[index]
            if index <= last_colon:
                answer = _answered_elsewhere(parts, number, index)
                if answer == "":
                    continue
                state = answer if answer and state == PRESENT else state
            if (
                index
                and state == PRESENT
                and term.entity == "enlarge"
                and getattr(clause[index - 1].value, "entity", "") == "borderline"
            ):
                state = UNCERTAIN  # "borderline enlarged"
            organs = organs_of(term, bound)
            sides = frozenset(event.value for event in bound if event.kind == "side")
            degree, change = (
                clause_qualifiers[number][index].get("degree"),
                clause_qualifiers[number][index].get("change"),
            )
            if state == ABSENT:  # "no large effusion" has no size, "no new effusion" no change
                gone = is_resolved(clause, index) or (number + 1 < len(parts) and is_resolved(parts[number + 1][0], -1))
                degree, change = None, RESOLVED if gone else None
            where = tuple(positions(organs, bound))
            mentions.append(Mention(term, state, tuple(organs), sides, degree, change, where))
    return tuple(mentions)


def _qualified(parts: Sequence[Sequence[Event]]) -> list[Qualifiers]:
    """The qualifiers of each clause; one without a finding speaks of the clause before it ("which is unchanged")."""
    clause_qualifiers: list[Qualifiers] = []
    for clause in parts:
        clause_qualifiers.append(qualifiers(clause))
        if len(clause_qualifiers) > 1 and not clause_qualifiers[-1]:
            for event in clause:
                if event.kind in KINDS and event.value:
                    give(clause_qualifiers[-2], event)
    return clause_qualifiers


# A sentence that only answers the question before it: a word, or a description without a finding of its own.
_ANSWER = re.compile(
    r"(?:no|none|nil|negative|absent|yes|positive|present|possibl[ey]|unlikely|likely|no evidence(?: of (?:this|it))?"
    r"|not (?:seen|present|identified|visuali[sz]ed|evident))[ ,.;!]*(?=$|small|mild|moderate|large|on |in |but )"
    r"|(?:small|mild|moderate|large|trace|tiny|minimal|severe|left|right|bilateral|unchanged|"
    r"stable)(?: [a-z-]+){0,3}[.!]*$",
    re.IGNORECASE,
)


def _has_finding(sentence: str) -> bool:
    return any(event.kind == "term" for event in events(plain(sentence)))


def readable_sentences(text: str) -> Iterator[str]:
    """The sentences of a report, without its indication, history, comparison and technique, and without relatives.

    An answer in a sentence of its own stands with its question ("Pneumothorax? No.").
    """
    question = ""
    for sentence in sentences(readable_text(text)):
        if _RELATIVE.match(sentence):
            continue
        sentence = _FAMILY_HISTORY.sub("", sentence)
        if question:
            if _ANSWER.match(sentence) and not _has_finding(sentence):
                yield f"{question} {sentence}"
                question = ""
                continue
            yield question
        question = sentence if sentence.endswith("?") else ""
        if not question:
            yield sentence
    if question:
        yield question
