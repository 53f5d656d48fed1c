"""Report text -> findings: CheXpert-14 states and (entity, position, state) triplets. By rules, without a model.

`mentions.py` reads each finding that a sentence names with its state and place; here they become a report's labels.
`python -m findings_agreement` measures the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from hf_medvlm.labels import CHEXPERT_14, Finding
from hf_medvlm.language.findings_terms import DEVICE_ENTITIES, NORMAL_ENTITIES, SIZE_FINDING, Term
from hf_medvlm.language.mentions import Mention, events, organs_of, positions, read_mentions, readable_sentences
from hf_medvlm.language.negation import ABSENT, PRESENT, UNCERTAIN

Triplet = tuple[str, str, str]

STATE_CODES = {PRESENT: Finding.PRESENT, UNCERTAIN: Finding.UNCERTAIN, ABSENT: Finding.ABSENT}
_RANK: dict[int | None, int] = {None: 0, Finding.ABSENT: 1, Finding.UNCERTAIN: 2, Finding.PRESENT: 3}
_OPPOSITE = {PRESENT: ABSENT, ABSENT: PRESENT, UNCERTAIN: UNCERTAIN}
_HARMLESS = DEVICE_ENTITIES | {"finding", "process"}


def state_of(mention: Mention) -> str:
    """A mention's state; "borderline heart size" is a doubt, "borderline cardiomegaly" is one of a degree."""
    return UNCERTAIN if mention.term.entity == "borderline" and mention.state == PRESENT else mention.state


def findings_of(mention: Mention) -> Iterator[tuple[str, str]]:
    """(CheXpert finding, state) pairs that a mention says."""
    term, organs, state = mention.term, mention.organs, state_of(mention)
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
def _labels_of(sentence: str) -> tuple[bool, bool, tuple[tuple[str, int], ...]]:
    """(whether anything is named, whether nothing abnormal is, (finding, code) pairs)."""
    mentions, normal, pairs = read_mentions(sentence), True, []
    for mention in mentions:
        state = state_of(mention)
        if mention.term.entity in NORMAL_ENTITIES:  # "the lungs are not clear" is abnormal
            normal &= state == PRESENT
        else:
            normal &= state == ABSENT or mention.term.entity in _HARMLESS
        for finding, of_finding in findings_of(mention):
            normal &= of_finding == ABSENT or finding == "Support Devices"
            pairs.append((finding, int(STATE_CODES[of_finding])))
    return bool(mentions), normal, tuple(pairs)


@lru_cache(maxsize=1 << 15)
def _triplets_of(sentence: str) -> tuple[Triplet, ...]:
    return tuple(
        (mention.term.entity, position, state_of(mention))
        for mention in read_mentions(sentence)
        for position in mention.positions
    )


def term_of(words: str) -> Term | None:
    """The first term of the lexicon in some words, or None: "left effusions" has the one whose entity is "effusion"."""
    return next((event.value for event in events(words.lower()) if event.kind == "term"), None)


def positions_of(words: str, term: Term | None = None) -> list[str]:
    """MedKLIP's positions for the words of a place ("left lung base": "left_lower_lung"), where `term` lies.

    The term says what "left" alone is left of. A place that the lexicon does not know is "other".
    """
    bound = [event for event in events(words.lower()) if event.kind in ("place", "side")]
    if term:
        organs = organs_of(term, bound)
    else:
        organs = [organ for event in bound if event.kind == "place" for organ in event.value]
    return positions(organs or ["other"], bound)


def extract_triplets(text: str) -> list[Triplet]:
    """The (entity, position, "present" | "absent" | "uncertain") triplets of a text, in reading order, each once.

    Entities and positions are MedKLIP's (`labels.MEDKLIP_ENTITIES`, `MEDKLIP_POSITIONS`). Indication, history,
    comparison and technique are not read (see `sections.readable_text`).
    """
    return list(dict.fromkeys(triplet for sentence in readable_sentences(text) for triplet in _triplets_of(sentence)))


def label_report(text: str) -> dict[str, int | None]:
    """CheXpert-14 name -> 1 present, 0 absent, -1 uncertain, None not mentioned.

    Where a text says several things of a finding, present wins over uncertain, and uncertain over absent. "No Finding"
    is 1 where something was read and nothing abnormal (support devices apart) is present or uncertain, else None; it is
    stricter than CheXpert's, which looks at its own findings only. Sections as in `extract_triplets`.
    """
    labels: dict[str, int | None] = dict.fromkeys(CHEXPERT_14)
    read, normal = False, True
    for sentence in readable_sentences(text):
        named, harmless, pairs = _labels_of(sentence)
        read |= named
        normal &= harmless
        for finding, code in pairs:
            if _RANK[code] > _RANK[labels[finding]]:
                labels[finding] = code
    if read and normal:
        labels["No Finding"] = int(Finding.PRESENT)
    return labels
