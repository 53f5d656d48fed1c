"""Scope of negation and doubt: what a sentence denies, doubts or says. Knows no finding; the words are in `cues.py`.

A rule system in the line of NegEx (Chapman et al. 2001) and NegBio (Peng et al. 2018), over a flat list of events in
place of a parse. Three steps:

1. `clauses` cuts a sentence where a new statement begins.
2. `states` goes through a clause from left to right. A cue that looks forward ("no", "may") opens a scope; the scope
   reaches over a list and ends with the clause, with the first item after its verb, or where an item of the list
   itself says that it is there (`_asserted`: "no pneumothorax, stable cardiomegaly"). A cue that looks back ("is not
   seen") reaches to the beginning of its statement.
3. `sentence_states` lets a statement that names nothing speak of the one before it ("no pneumonia, but it cannot be
   excluded").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hf_medvlm.language.cues import NEW, SEVERE

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
_REMOVED = "removed"  # a scope in `states` alone: absent, for what a hand can take out
NORMAL, DEVICE, ZONE = "normal", "device", "zone"


class Event(NamedTuple):
    """A word or phrase that matters. `kind` is "term" (a finding), "place", "side" or a kind of cue; `value` is what it
    stands for. `role` marks terms that say that nothing is wrong (`NORMAL`), those that can be removed (`DEVICE`), and
    places that are a part of a lung (`ZONE`).
    """

    kind: str
    value: Any = None
    role: str = ""


JOINS = ("comma", "and", "or")
_ENDS = (*JOINS, "stop", "dash")
_ANSWERED = ("colon", "dash", "doubt_back")  # what may stand between a finding and the answer "no"
_STATE = {"deny": ABSENT, "doubt": UNCERTAIN, "affirm": PRESENT}


def clauses(events: Sequence[Event]) -> list[list[Event]]:
    """Cut a sentence's events where a new statement begins.

    That is at a "stop", at a dash that no answer follows, and at an "and" or comma that `_begins` a statement.
    """
    cut: list[list[Event]] = [[]]
    for index, event in enumerate(events):
        if event.kind == "dash":
            begins = not _is_answer(part_after(events, index + 1))
        else:
            begins = event.kind == "stop" or (event.kind in ("comma", "and") and _begins(cut[-1], events, index))
        if begins:
            cut.append([])
        cut[-1].append(event)
    return cut


def part_after(events: Sequence[Event], start: int) -> Sequence[Event]:
    """One item of a list: the events from `start` to the next conjunction, comma, dash or stop."""
    end = start
    while end < len(events) and events[end].kind not in _ENDS:
        end += 1
    return events[start:end]


def _part_before(events: Sequence[Event], end: int) -> Sequence[Event]:
    start = end
    while start > 0 and events[start - 1].kind not in _ENDS:
        start -= 1
    return events[start:end]


def _has(events: Sequence[Event], *kinds: str) -> bool:
    return any(event.kind in kinds for event in events)


def _is_answer(part: Sequence[Event]) -> bool:
    return not _has(part, "term") and any(event.kind.split("_")[0] in _STATE for event in part)


def _begins(clause: Sequence[Event], events: Sequence[Event], index: int) -> bool:
    """Whether the comma or "and" at `index` begins a new statement.

    What follows, up to the next conjunction, must be a statement of its own: a subject with its verb, where the clause
    so far has its own verb ("no effusion is seen and the heart is large"), has named a finding and a place comes next
    ("no effusion, the heart is large"), or denies nothing that could reach over a comma; a finding with its own denial
    or doubt behind it ("left effusion, pneumothorax not seen"); or a finding with its answer ("edema: no, effusion:
    yes").
    """
    verb = _has(clause, "verb")
    if not (verb or _has(clause, "term")):
        return False
    part = part_after(events, index + 1)
    subject = [event.kind for event in _before(part, "verb") if event.kind in ("term", "place", "side")]
    comma = events[index].kind == "comma"
    if subject and _has(part, "verb"):
        denies = _has(clause, "deny")
        if verb or "term" not in subject or (comma and not denies):
            return True
    if _has(part, "colon"):
        return _has(clause, "colon", "doubt_back")
    if comma and _continues_list(events, index):
        return False
    closes = any(_looks_back(part, place) for place, event in enumerate(part) if event.kind not in ("verb", "term"))
    return closes and (comma or verb or _has(clause, "deny_back", "deny_either", "doubt_back"))


def _continues_list(events: Sequence[Event], index: int) -> bool:
    """Whether the comma at `index` is the second or a later one of a list of bare findings ("edema, nodules, effusion
    not seen")."""
    item = _part_before(events, index)
    comes_after_comma = index > len(item) and events[index - len(item) - 1].kind == "comma"
    return comes_after_comma and _has(item, "term") and not _has(item, "degree", "change", "known", "side", "verb")


def _before(part: Sequence[Event], kind: str) -> Sequence[Event]:
    return next((part[:place] for place, event in enumerate(part) if event.kind == kind), part)


def _looks_back(part: Sequence[Event], place: int) -> bool:
    """Whether the cue at `place` speaks of a finding before it in the same part."""
    verb, _, direction = part[place].kind.partition("_")
    if part[place].kind == "removed_back":
        return any(event.role == DEVICE for event in part[:place])
    if verb not in _STATE or not direction or not _has(part[:place], "term"):
        return False
    return direction != "aside" or not _names(part[place + 1 :])


def _names(events: Sequence[Event]) -> bool:
    """Whether a finding is named, and not only that all is well."""
    return any(event.kind == "term" and event.role != NORMAL for event in events)


def sentence_states(events: Sequence[Event]) -> list[tuple[list[Event], list[str]]]:
    """(events, states) of each clause of a sentence."""
    read: list[tuple[list[Event], list[str]]] = []
    for clause in clauses(events):
        clause_states = states(clause)
        # "..., but cannot be excluded": said of the last thing named.
        if read and not _has(clause, "term", "place", "side"):
            for event in clause:
                verb, _, direction = event.kind.partition("_")
                if verb in _STATE and direction and event.value != "query":
                    before, of_before = read[-1]
                    _look_back(before, len(before), of_before, _STATE[verb], anew=True)
        read.append((clause, clause_states))
    return read


def states(clause: Sequence[Event]) -> list[str]:
    """The state, "present", "absent" or "uncertain", of every event of one clause (it says something of terms).

    A denial reaches over a list ("no effusion, edema or nodule"), a doubt over "or" and "and", and over a comma that an
    "or" follows. A doubt inside a denial is denied ("no findings suspicious for"); after a comma it begins anew ("no
    effusion, possible edema"). What was removed is a device or the first thing named. Alternatives without any other
    doubt ("atelectasis or scarring", "infiltrate versus atelectasis") are present, each of them, as the annotators of
    the IU corpus have it.
    """
    by_event = [PRESENT] * len(clause)
    scope, reached, closing = PRESENT, 0, False
    for index, event in enumerate(clause):
        kind, _, direction = event.kind.partition("_")
        if kind == "term":
            if (scope == _REMOVED and reached and event.role != DEVICE) or (
                scope == ABSENT and reached and event.role == NORMAL
            ):
                scope, closing = PRESENT, False
            by_event[index] = ABSENT if scope == _REMOVED else scope
            reached += 1
        elif kind == "colon" and reached:
            scope, closing = PRESENT, False
        elif kind in ("verb", "participle"):
            closing = scope != PRESENT and reached > 0
        elif kind in JOINS:
            if scope == UNCERTAIN and _ends_doubt(clause, index, reached):
                scope, closing = PRESENT, False
            elif (reached and closing) or ((reached or clause[index - 1].kind == "place") and _asserted(clause, index)):
                scope, closing = PRESENT, False
        elif kind in ("removal", "removed"):
            if direction and any(before.role == DEVICE for before in clause[:index]):
                _look_back(clause, index, by_event, ABSENT, role=DEVICE)
            elif not direction:
                scope, reached, closing = _REMOVED, 0, False
        elif kind in _STATE:
            if _is_said_of_before(clause, index):
                _look_back(clause, index, by_event, _STATE[kind], anew=_is_after_mark(clause, index))
            elif kind in ("deny", "affirm") or (
                kind == "doubt" and (scope != ABSENT or clause[index - 1].kind in JOINS)
            ):
                scope, reached, closing = _STATE[kind], 0, False
    return by_event


def _is_after_mark(clause: Sequence[Event], index: int) -> bool:
    return index > 0 and clause[index - 1].kind in _ANSWERED


def _is_said_of_before(clause: Sequence[Event], index: int) -> bool:
    """Whether the cue at `index` speaks of what stands before it: by its kind, or as the answer to it."""
    if not _has(clause[:index], "term"):
        return False
    direction = clause[index].kind.partition("_")[2]
    after = clause[index + 1 :]
    if not direction:  # "pneumothorax: no", "effusion - possible", "consolidation nil"
        last = clause[index].value == "answer" and (
            not after or after[0].kind in _ENDS and clause[index - 1].kind == "term"
        )
        return (last or not _has(after, "term")) and (last or _is_after_mark(clause, index))
    if direction == "back":
        described = clause[index].value == "query" and _has(after[:2], "degree", "change", "known", "side")
        return not (described and not _has(after, "term"))  # "Effusion? Small."
    if _looks_back(
        [*_part_before(clause, index), clause[index], *part_after(clause, index + 1)], len(_part_before(clause, index))
    ):
        return True
    return not _names(after)


def _ends_doubt(clause: Sequence[Event], index: int, reached: int) -> bool:
    """A doubt reaches over "or" and "and", not over a comma that no "or" follows ("possible edema, cardiomegaly").

    A comma between what describes one finding ("possible small, dense opacity") ends nothing.
    """
    if clause[index].kind != "comma" or _has(clause[index + 1 :], "or"):
        return False
    return reached > 0 or clause[index - 1].kind not in ("degree", "change", "known", "place", "side")


def _asserted(clause: Sequence[Event], index: int) -> bool:
    """Whether the item after the conjunction at `index` itself says that its finding is there.

    Only what is there is stable, old or smaller. A degree or a side says so too ("no pneumothorax, small left
    effusion"), unless the list goes on with "or" ("no pneumothorax, large effusion or edema"); "large", "new" and a
    mere side, which are often denied, do so in the last item only.
    """
    part = part_after(clause, index + 1)
    named = next((place for place, event in enumerate(part) if event.kind == "term"), None)
    if clause[index].kind == "or" or named is None:
        return False
    if any(event.kind == "known" or (event.kind == "change" and event.value != NEW) for event in part):
        return True
    after = clause[index + 1 + len(part) :]
    weak = [event for event in part[: named + 1] if event.kind in ("degree", "change", "side")]
    weak += [event for event in part if event.role == ZONE]
    if not weak or _has(after, "or"):
        return False
    last = not _has(after, "comma", "and")
    return last or any(event.kind == "degree" and event.value != SEVERE for event in weak)


def _look_back(
    clause: Sequence[Event], index: int, by_event: list[str], state: str, *, role: str = "", anew: bool = False
) -> None:
    """Give `state` to the terms before `index`, back to the verb before them, or to an item that says it is there.

    `anew` is for an answer, which overrules a denial or doubt in what it answers; `role` names the terms meant.
    """
    met = False
    for back in range(index - 1, -1, -1):
        event = clause[back]
        if met and (
            event.kind in ("verb", "participle")
            or (event.kind == "term" and event.role == NORMAL)
            or (event.kind in ("comma", "and") and _has(_part_before(clause, back), "change", "known"))
        ):
            return
        if event.kind == "term" and (anew or by_event[back] != ABSENT) and role in ("", event.role):
            by_event[back], met = state, True
