"""Scope of negation and doubt: what a sentence denies, doubts or says. Knows no finding.

A rule system in the line of NegEx (Chapman et al. 2001) and NegBio (Peng et al. 2018), over a flat list of events in
place of a parse: cues open a scope forward ("no", "possible") or close one backward ("is not seen", "is suspected");
verbs and conjunctions end it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"


class Event(NamedTuple):
    """A word or phrase that matters. `kind` is "term" (a finding), "place", "side" or a kind of cue; `value` is what a
    term, place or side stands for."""

    kind: str
    value: Any = None


_SEEN = (
    r"(?:(?:definit\w+|clearly|well|reliably|otherwise|currently|longer) )?(?:seen|identified|visuali[sz]ed|present"
    r"|evident|appreciated|noted|demonstrated|detected|observed|apparent|found|suspected|suggested|visible"
    r"|recogni[sz]ed|shown)"
)
_DEGREE = (
    r"(?:acute|appreciabl[ey]|definite|great|gross|interval|interim|large|major|other|relevant|significant(?:ly)?"
    r"|substantial(?:ly)?)"
)
_CHANGE = (
    r"(?:changed?|changes(?! of)|increased?|decreased?|progress\w*|worsen\w*|improve\w*|difference|larger|smaller)"
)
_CANNOT = r"(?:can ?not|can't|could not|not)"

# (kind, pattern over lower-cased text), tried in this order at every word. EARLY stands before the words for findings
# and places, LATE after them.
EARLY_CUES: tuple[tuple[str, str], ...] = (
    # What looks like a cue and is none: "no significant change in the effusion" says that there is one.
    (
        "none",
        rf"(?:no|not|without)(?: {_DEGREE}){{0,2}} {_CHANGE}(?: in(?: the)?(?: size| appearance)?)?(?: of)?|not only",
    ),
    ("none", r"(?:ensure|document|confirm|until|assess)(?: \w+)? (?:resolution|clearing)(?: of)?"),
    (
        "none",
        r"(?:almost|nearly|near|partial\w*|largely|mostly|incomplete\w*)(?: complete\w*)? (?:resol|clear)\w+(?: of)?",
    ),
    ("none", r"(?:consistent|compatible|in keeping|associated) with"),
    # Doubt.
    ("doubt back", rf"{_CANNOT}(?: \w+)?(?: be)?(?: \w+)? (?:excluded|ruled out)"),
    (
        "doubt back",
        r"(?:is|are) (?:\w+ )?(?:possible|suspected|questioned|questionable|a (?:possibility|consideration))",
    ),
    ("doubt either", rf"(?:{_CANNOT}|difficult to)(?: \w+)? (?:exclude|rule out)"),
    ("doubt", r"(?:history|evaluat\w+|assess(?:ment)?|look\w*) (?:of|for)|rule out|r/o|(?:to )?exclude"),
    # Denial.
    (
        "denial back",
        rf"(?:not|no longer|never) {_SEEN}|(?:is|are|was|were|been) (?:(?!not)\w+ )?(?:excluded|ruled out|removed)",
    ),
    ("denial either", r"(?:(?:has|have)(?: \w+){0,2} )?(?:resolved|cleared|disappeared)|absent|none|unlikely"),
    ("denial", r"negative for|(?:absence|lack|exclusion|resolution|clearing|removal) of|(?:free|clear) of"),
)
LATE_CUES: tuple[tuple[str, str], ...] = (
    ("doubt either", r"possible|probable|likely|questionable|questioned|suspected|equivocal"),
    (
        "doubt",
        r"possibly|probably|may|might|could|perhaps|question(?: of)?|suspicio(?:n|us) (?:for|of)|suspects?|concern\w*"
        r"|worrisome|suggest\w*|presum\w+|differential|potential\w*|favou?r\w*",
    ),
    (
        "denial",
        r"no longer|no(?! the)|not|without|w/o|neither|nor|never|denies|cannot|rather than|instead of|as opposed to",
    ),
    ("stop", r"but|however|(?:al)?though|except|aside from|apart from|other than|there|which|while|whereas|with|;"),
    ("verb", r"is|are|was|were|has|have|remains?|appears?|demonstrates?|shows?|contains?|represents?|reflects?"),
    ("participle", r"seen|noted|identified|visuali[sz]ed"),
    ("or", r"and/or|or|versus|vs"),
    ("and", r"and|,|as well as|along with"),
)
_CONJUNCTIONS = ("and", "or")


def clauses(events: Sequence[Event]) -> list[list[Event]]:
    """Cut a sentence's events where a new statement begins.

    That is at a "stop", and at an "and" or comma which a subject and a verb follow, where the clause so far has its own
    verb ("no effusion is seen and the heart is large") or has named a finding and a place comes next ("no effusion,
    the heart is large").
    """
    found: list[list[Event]] = [[]]
    named, verb = False, False
    for index, event in enumerate(events):
        begins = event.kind == "stop"
        if event.kind == "and" and (named or verb):
            subject = _subject(events, index + 1)
            begins = bool(subject) and (verb or "term" not in subject)
        if begins:
            found.append([])
            named, verb = False, False
        found[-1].append(event)
        named |= event.kind == "term"
        verb |= event.kind == "verb"
    return found


def _subject(events: Sequence[Event], start: int) -> list[str]:
    """The kinds of the terms, places and sides from `start` up to a verb; none where a conjunction comes first."""
    subject = []
    for event in events[start:]:
        if event.kind == "verb":
            return subject
        if event.kind in ("term", "place", "side"):
            subject.append(event.kind)
        elif event.kind in _CONJUNCTIONS or event.kind == "stop":
            break
    return []


def states(clause: Sequence[Event]) -> list[str]:
    """The state, "present", "absent" or "uncertain", of every event of one clause (it says something of terms).

    A denial reaches over a list ("no effusion, edema or nodule") to the clause's end, or to the first conjunction
    after its verb. A doubt reaches over "or", and over a comma that an "or" follows, not over "and". A doubt inside a
    denial is denied ("no findings suspicious for"); after a comma it begins anew ("no effusion, possible edema").
    Alternatives without any other doubt ("atelectasis or scarring", "infiltrate versus atelectasis") are present, each
    of them, as the annotators of the IU corpus have it.
    """
    found = [PRESENT] * len(clause)
    terms_after = sum(event.kind == "term" for event in clause)
    ors_after = sum(event.kind == "or" for event in clause)
    terms_before, scope, closing = 0, PRESENT, False
    for index, event in enumerate(clause):
        kind = event.kind
        if kind == "term":
            found[index] = scope
            terms_after, terms_before = terms_after - 1, terms_before + 1
        elif kind in ("verb", "participle"):
            closing = scope != PRESENT and terms_before > 0
        elif kind in _CONJUNCTIONS:
            ors_after -= kind == "or"
            if closing or (scope == UNCERTAIN and kind == "and" and not ors_after):
                scope, closing = PRESENT, False
        elif kind.startswith("denial"):
            if kind == "denial back" or (kind == "denial either" and terms_before):
                _look_back(clause, index, found, ABSENT)
            else:
                scope, closing = ABSENT, False
        elif kind.startswith("doubt"):
            if kind == "doubt back" or (kind == "doubt either" and not terms_after):
                _look_back(clause, index, found, UNCERTAIN)
            elif scope != ABSENT or clause[index - 1].kind == "and":
                scope, closing = UNCERTAIN, False
    return found


def _look_back(clause: Sequence[Event], index: int, found: list[str], state: str) -> None:
    """Give `state` to the terms before `index`, back to the verb before them."""
    met = False
    for back in range(index - 1, -1, -1):
        if met and clause[back].kind in ("verb", "participle"):
            return
        if clause[back].kind == "term" and found[back] != ABSENT:
            found[back], met = state, True
