"""Report text -> sections -> sentences. Labels nothing.

`split_sections` and `select_sections` are for MIMIC-CXR's layout; `sections` and `readable_text` for any.

The section rules are those of MIT-LCP/mimic-cxr @ 3190146 (`txt/section_parser.py`, `create_section_files.py`), written
anew, odd cases included, because the published section and label files were made with them. A newer copy
(MIT-LCP/mimic-code @ 8bcbd19, `mimic-iv-cxr/txt`) differs in one number only: the start of `last_paragraph`, which
there counts the blank line that divides it from the text before; `Section.start` here is always the true start.
The study lists that the original names by hand (54 studies, none of them in `mimic_cxr_sectioned.csv`) are not kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from hf_medvlm.language.headers import NOT_READ, headers, may_have_headers

# A newline, exactly one space, capitals, a colon, one white space.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")

_TARGETS = {
    "preamble": ("preamble",),
    "impression": (
        *("impression", "conclusion", "findings and impression", "findings/impression", "findings/ impression"),
        *("impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion", "mpression"),
        *("impession", "ndication"),  # "ndication" stands above an impression in the one report that has it
    ),
    "findings": (
        *("findings", "finding", "reference findings", "chest, two views", "findins", "findindgs", "findgings"),
        *("findngs", "findnings", "finidngs"),
    ),
    "comparison": (
        *("comparison", "comparisons", "reference exam", "comparison exam", "comparison film", "comparision"),
        *("comparsion", "comparrison", "comparisions"),
    ),
    "indication": ("indication", "reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("history", "clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("examination", "exam", "type of examination"),
    "recommendations": ("recommendations", "recommendation(s)", "recommendation"),
    "wet read": ("wet read", "wetread"),
    **{name: (name,) for name in ("technique", "notification", "addendum", "date", "comment")},
}
_EXACT = {header: name for name, headers in _TARGETS.items() for header in headers}
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
_VIEWS = (
    *("chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and"),
    *("two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window"),
    *("frontal upright", "frontal semi-upright", "ribs", "pa and lat"),
)


class Section(NamedTuple):
    """One section of a report; `text` is not stripped, `start` is its place in the report."""

    name: str
    text: str
    start: int


def _section_name(header: str) -> str:
    name = header.lower().strip()
    if name in _EXACT:
        return _EXACT[name]
    contained = next((main for main in _CONTAINED if main in name), None)
    return contained or ("findings" if any(view in name for view in _VIEWS) else name)


def split_sections(text: str) -> list[Section]:
    """Cut a report in MIMIC-CXR's layout (every line begins with one space) into sections, in order.

    What stands before the first header is "preamble"; without any header the whole is one "full report". Empty
    findings and impressions are dropped. Where neither is left, the last section is cut at its first blank line and
    what follows it is "last_paragraph".
    """
    header = _HEADER.search(text)
    if header is None:
        sections = [Section("full report", text, 0)]
    else:
        sections = [Section("preamble", text[: header.start(1)], 0)]
    while header is not None:
        name, start = _section_name(header[1]), header.end()
        # As in the original: on from the first newline of the section. Where a header ends its line, `\s` has taken
        # that newline, and a header on the very next line goes unseen.
        header = _HEADER.search(text, max(text.find("\n", start), start))
        body = text[start : header.start() if header else len(text)]
        if body.strip() or name not in ("impression", "findings"):
            sections.append(Section(name, body, start))
    if not {"impression", "findings"} & {section.name for section in sections}:
        name, body, start = sections[-1]
        before, blank, after = body.partition("\n \n")
        if blank:
            sections[-1] = Section(name, before, start)
            sections.append(Section("last_paragraph", after, start + len(before) + len(blank)))
    return sections


def select_sections(text: str) -> dict[str, str]:
    """The last section of each name, stripped. `findings`, `impression`, `last_paragraph`, `comparison`, `indication`
    and `history` are always there, "" where the report has none."""
    named = {"findings": "", "impression": "", "last_paragraph": "", "comparison": "", "indication": "", "history": ""}
    return named | {section.name: section.text.strip() for section in split_sections(text)}


def sections(text: str) -> dict[str, str]:
    """The last section of each name of a report in any layout, stripped; keys as in `select_sections`.

    MIMIC-CXR's layout is cut as its published files are. Elsewhere a header is a known name, in any case, with a colon
    or alone on its line. A text without headers is the "full report"; what follows an indication, history or comparison
    without a header of its own is the "last_paragraph".
    """
    if _HEADER.search(text):
        return select_sections(text)
    named = {"findings": "", "impression": "", "last_paragraph": "", "comparison": "", "indication": "", "history": ""}
    return named | {section.name: section.text.strip() for section in _any_sections(text) if section.text.strip()}


def readable_text(text: str) -> str:
    """What a report in any layout says of the patient in this study: without indication, history, comparison,
    technique, names and dates."""
    if not may_have_headers(text):
        return text
    cut = _any_sections(text)
    if len(cut) == 1:
        return cut[0].text
    return "\n\n".join(section.text for section in cut if section.name not in NOT_READ)


def _any_sections(text: str) -> list[Section]:
    marks = headers(text)
    if not marks:
        return [Section("full report", text, 0)]
    cut = [Section("preamble", text[: marks[0].start], 0)] if text[: marks[0].start].strip() else []
    has_body = any(mark.name in ("findings", "impression") for mark in marks)
    for mark, end in zip(marks, [*(mark.start for mark in marks[1:]), len(text)], strict=True):
        stop = end if mark.name not in NOT_READ or has_body else _first_statement(text, mark.end, end)
        name = mark.name or "last_paragraph"
        cut.append(Section(name, text[mark.end : stop], mark.end))
        if text[stop:end].strip():
            cut.append(Section("last_paragraph", text[stop:end], stop))
    return cut


def _first_statement(text: str, start: int, end: int) -> int:
    """Where an indication ends that no header follows: at a blank line, else after its first sentence."""
    begin = start + len(text[start:end]) - len(text[start:end].lstrip())
    blank = re.compile(r"\n[ \t]*\n").search(text, begin, end)
    if blank:
        return blank.end()
    first = _END.search(text, begin, end)
    line = text.find("\n", begin, end)
    ends = [place for place in (first.end() if first else -1, line) if place >= 0]
    return min(ends, default=end)


# The end of a sentence; a full stop without a space only between words ("clear.No effusion"); a question mark only
# after a word ("? pneumonia" is a doubt). Each branch begins with what it looks for, which makes the search fast.
_END = re.compile(
    r"[.!]+[\"')\]]*(?=\s|$)|\.(?<=\w\w\.)(?=[A-Z][A-Za-z])|\.(?<=[A-Za-z]{3}\.)(?=[a-z]{2}(?!\w*\.\w))"
    r"|\?(?<=[^\s(?]\?)[?]*[\"')\]]*(?=\s|$)|\n[ \t]*\n|\n(?=\s*(?:\(?\d{1,2}[.)]|[-*\u2022])\s)| (?=\d[.)] [A-Z])"
)
_ITEM = re.compile(r"^(?:\(?\d{1,2}[.)]|[-*\u2022])(?:\s+|$)")
_ABBREVIATION = re.compile(
    r"\b(?:dr|drs|mr|mrs|ms|md|vs|approx|e\.g|i\.e|cf|fig|ca|esp|incl|resp|st|[a-z]\.[a-z])\.$", re.IGNORECASE
)


_NARROWEST = 60
"""A line of running text that is shorter than this was ended on purpose."""


def _end_lines(text: str) -> str:
    """`text` with a blank line for each line break that ends a statement: where the next line begins with a capital
    whose word would have fitted on this line."""
    lines = text.split("\n")
    width = max(_NARROWEST, *map(len, lines))
    pieces = [lines[0]]
    for before, line in zip(lines, lines[1:], strict=False):
        word = line.split(maxsplit=1)[:1]
        ends = bool(word) and word[0][:1].isupper() and len(before.rstrip()) + 1 + len(word[0]) <= width
        pieces.append("\n\n" if ends and before.rstrip()[-1:] not in (",", "-", ":") else "\n")
        pieces.append(line)
    return "".join(pieces)


def sentences(text: str) -> list[str]:
    """The sentences of a report, white space collapsed, list numbers and bullets taken off.

    Made for radiology reports: "1. No effusion. 2. Stable." gives two sentences, "5.5 cm", "vs." and "Dr. ___" none
    too many; de-identified words (`___`, `XXXX`) are words; a lower-cased text is split as well. A line break ends a
    sentence where the line was not full and a capital follows, as in a list, and not inside running text.
    """
    if "\n" in text:
        text = _end_lines(text)
    pieces, start = [], 0
    for end in _END.finditer(text):
        piece = text[start : end.end()]
        if _ABBREVIATION.search(piece[-12:]):
            continue
        pieces.append(piece)
        start = end.end()
    pieces.append(text[start:])
    stripped = (_ITEM.sub("", " ".join(piece.split())) for piece in pieces)
    return [sentence for sentence in stripped if sentence.strip(".?! ")]
