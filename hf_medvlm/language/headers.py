"""The headers of report sections in any layout: which words are one, and whether the patient's present follows.

MIMIC-CXR's own layout, with its odd cases, is in `sections.py`; this is for all other texts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

# Section -> what its header says, in any case. What these hold is not the state of the patient in this study.
NOT_READ = {
    "indication": (
        r"(?:clinical|study|exam)? ?indications?(?: for .*)?|(?:reason|purpose|rationale)s?(?: (?:for|of) .*)?"
        r"|(?:clinical|diagnostic|referral) (?:questions?|query|concerns?|problem|indications?|"
        r"request)|questions?|query"
        r"|requests?|(?:chief |presenting |main )?complaints?|symptoms?|presentation|presenting .*|"
        r"clinically|rule out"
        r"|(?:admitting|admission|provisional|referral|referring|clinical|working|known|pre-?op\w*) diagnos[ie]s"
    ),
    "history": (
        r"(?:.* )?(?:history|hx)(?: of .*)?|hpi|pmhx?|c/o|h/o|clinical (?:info\w*|details?|data|"
        r"notes?|background|context"
        r"|summary|statement|features?|setting|status|course|scenario|correlat\w+|remarks?)|"
        r"background|patient (?:info\w*|details?)"
        r"|information|pfi|clinical"
    ),
    "comparison": (
        r"compari\w+(?: .*)?|compar(?:ed?|ing)(?: .*)?|(?:prior|previous|reference|old|earlier|"
        r"relevant|last)(?: .*)?|priors?"
    ),
    "technique": (
        r"techniques?|(?:radiographic |imaging )?technique|procedures?|protocol|contrast|"
        r"views?(?: .*)?|projections?|image quality"
        r"|quality|methods?|equipment|dose"
    ),
    "examination": r"(?:type of )?(?:exam(?:ination)?s?|stud(?:y|ies)|imaging)(?: (?:type|name|date|performed))?|"
    r"modality|investigation|order(?:ing)?(?: .*)?",
    "notification": (
        r"notifications?|(?:electronically )?(?:signed|dictated|transcribed|verified|approved|"
        r"reported|read)(?: by| on)?"
        r"|radiologist|referr\w+ .*|attending|resident|communicat\w+|critical results?|age|sex|gender|name|mrn"
    ),
    "date": r"(?:.* )?(?:date|time)(?: .*)?",
}
READ = {
    "findings": (
        r"(?:.* )?findings?(?: and .*| ?[/&] ?impression)?|reports?|results?|observations?|"
        r"description|body(?: .*)?|narrative"
        r"|interpretation|(?:chest|cxr)(?: .*)?|(?:full|final|wet|preliminary|radiology|"
        r"preliminary) (?:report|read)|wetread"
    ),
    "impression": r"(?:.* )?(?:impress?ions?|conclusions?|opinion|summary|diagnos[ie]s)|imp|concl|assessment|"
    r"comments?|addendum",
    "recommendations": r"recommendations?(?:\(s\))?|advice|plan|suggestions?",
}
_KINDS = [(name, name in READ, re.compile(pattern)) for name, pattern in {**NOT_READ, **READ}.items()]

# A line or a sentence begins, marks of Markdown and lists aside, with words and a colon; or a line holds nothing else.
_CANDIDATE = re.compile(
    r"(?:^|(?<=\n)|"
    r"(?<=[.?!;]\s))[^\S\n]*(?:\d{1,2}[.)] ?)?[*#_\[<>b/ ]*(?P<header>[A-Za-z][A-Za-z ()/,&.'-]{1,45}?)\s?[*_\]]*"
    r"(?:[:\uff1a](?:</?\w+>|[*_]+|(?=\s|$)|(?=[A-Z?]))|[^\S\n]+[-\u2013\u2014](?=\s)|[*_\]]*[^\S\n]*(?=\n))"
    r"|(?<=\s)(?P<capitals>[A-Z][A-Z /]{3,40}):(?=\s)"
)


class Header(NamedTuple):
    """`name` is a key of `NOT_READ` or `READ`, or "" for capitals that head something else; `end` is where its text
    begins."""

    name: str
    start: int
    end: int
    is_read: bool


@lru_cache(maxsize=1 << 12)
def _kind(words: str) -> tuple[str, bool] | None:
    plain = re.sub(r"\([^)]*\)", "", " ".join(words.lower().split())).strip(" .,-/")
    if len(plain.split()) > 6:
        return None
    return next(((name, is_read) for name, is_read, pattern in _KINDS if pattern.fullmatch(plain)), None)


def may_have_headers(text: str) -> bool:
    """A quick look: whether there is a colon or dash, or a short line that ends without a full stop."""
    if ":" in text or "\uff1a" in text or " - " in text:
        return True
    return "\n" in text and any(
        len(line) < 50 and not line.rstrip().endswith((".", "?", "!")) for line in text.splitlines() if line.strip()
    )


def headers(text: str) -> list[Header]:
    """The section headers of a report, in order."""
    listed = []
    place = 0
    while match := _CANDIDATE.search(text, place):
        words = match["header"] or match["capitals"]
        place = max(match.end(), place + 1)
        kind = _kind(words)
        begins_line = not text[: match.start()].rstrip(" \t") or text[: match.start()].rstrip(" \t").endswith("\n")
        colon = ":" in match[0] or "\uff1a" in match[0]
        if kind and (colon or begins_line):
            listed.append(Header(kind[0], match.start(), match.end(), kind[1]))
        elif colon and begins_line and words == words.upper():
            listed.append(Header("", match.start(), match.start(), True))
    return listed
