"""Cells of a table: what counts as missing, lists written into one cell, views and labels in other people's words."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hf_medvlm.data.sources.base import EntryError, parse_state

MISSING = frozenset(("nan", "n/a", "na", "none", "null", "<na>", "#n/a", "nil", "missing", "-"))
"""Words that programs and people write where there is nothing (pandas, Excel, SQL), in any case."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".dcm", ".dicom", ".dic", ".tif", ".tiff")

VIEWS = {
    **dict.fromkeys(("posteroanterior", "postero-anterior", "posterior-anterior", "pa view", "frontal pa"), "PA"),
    **dict.fromkeys(("anteroposterior", "antero-posterior", "anterior-posterior", "ap view", "frontal ap"), "AP"),
    **dict.fromkeys(("lateral", "lat", "l", "left lateral", "latl"), "LATERAL"),
    **dict.fromkeys(("frontal", "front", "unknown", "unk"), None),
}
"""Views in words; "frontal" says neither PA nor AP, and a view that is not known counts as frontal."""


def text_of(value: Any) -> str:
    """A cell as text; None and NaN are empty."""
    return (
        "" if value is None or (not isinstance(value, (list, tuple, dict)) and value != value) else str(value).strip()
    )


_FILE_NAME = re.compile(r"[^\s<>]+\.(?:txt|xml|html?|json|rtf|docx?|odt|pdf)", re.IGNORECASE)
_MARKS = re.compile(r"</?(?:br|p|div|span|b|i|u|li|ul|font)\b[^<>]*>|&(?:lt|gt|amp|nbsp|quot|#\d+);|\\[nrt](?![a-z])")


class Missing:
    """Counts the cells that hold a word for "nothing", and those whose text holds marks of a web page."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()

    def text(self, value: Any) -> str:
        """`text_of`, with words such as "nan" and "N/A" taken as empty and counted."""
        text = text_of(value)
        if len(text) < 8 and text.lower() in MISSING:
            self.words[text] += 1
            return ""
        return text

    def note(self) -> list[str]:
        """What to tell the user, if anything."""
        words, marks = (", ".join(repr(w) for w, _ in count.most_common(3)) for count in (self.words, self.marks))
        told = [f"{self.words.total()} cells say {words} and count as empty"] if words else []
        if marks:
            told.append(f"{self.marks.total()} texts hold marks such as {marks}; a model learns to write them")
        return told


def report_text(value: Any, column: str, missing: Missing) -> str:
    """The text of a report cell.

    Raises:
        EntryError: a number, a list or an object, which is no report; the name of a file.
    """
    if value is not None and not isinstance(value, str) and value == value:
        raise EntryError("no text", f"column {column!r:.100} holds {value!r:.60}, which is no text")
    text = missing.text(value)
    if _FILE_NAME.fullmatch(text):
        raise EntryError("no text", f"column {column!r:.100} names the file {text!r:.80}; the table must hold its text")
    if mark := _MARKS.search(text):
        missing.marks[mark[0]] += 1
    return text


def as_list(value: Any, is_item: Any = None) -> list[Any]:
    """The items of a cell: a list as it is, a list written as text (Python's or JSON's), or one item.

    Args:
        is_item: where given, "a;b" and "a|b" are two items if this holds for each of them.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    text = text_of(value)
    if text[:1] + text[-1:] in ("[]", "()"):
        for read in (json.loads, ast.literal_eval):
            try:
                items = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(items, (list, tuple)):
                return list(items)
        return [part.strip(" '\"") for part in text[1:-1].split(",") if part.strip(" '\"")]
    if is_item is not None:
        for divider in ("|", ";", ","):
            parts = [part.strip() for part in text.split(divider) if part.strip()]
            if len(parts) > 1 and all(map(is_item, parts)):
                return parts
    return [value]


def looks_like_image(text: str) -> bool:
    """Whether a text ends as an image file does."""
    return PurePosixPath(text.replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES


def image_cells(value: Any, missing: Missing) -> list[Any]:
    """The images of a cell: paths, or what `datasets` gives for an embedded image.

    Raises:
        EntryError: none, or something that is neither.
    """
    items = as_list(value, looks_like_image)
    images: list[Any] = []
    for item in items:
        if isinstance(item, Mapping) or isinstance(item, bytes):
            images.append(item)
        elif isinstance(item, str) or item is None or item != item or isinstance(item, (int, float)):
            text = missing.text(item)
            if text or len(items) == 1:
                images.append(text)
        else:
            raise EntryError("no image", f"{item!r:.60} is no image path")
    if not images:
        raise EntryError("no image", "the list of images is empty")
    return images


def view_of(value: Any) -> str | None:
    """PA, AP, LATERAL, ... of a view in words; None where it is not known."""
    text = text_of(value)
    if text.lower() in MISSING:
        return None
    return VIEWS[text.lower()] if text.lower() in VIEWS else text.upper() or None


def label_states(value: Any, states: Mapping[str, Any]) -> dict[str, int | None]:
    """Labels of a study.

    Args:
        value: an object of states (also as JSON text), or the names of what is present: a list, also as text, or names
            divided by comma, semicolon or bar.
        states: finding -> cell of a column of its own.

    Raises:
        EntryError: a state that is none, or a cell that is neither names nor an object.
    """
    labels = {name: parse_state(name, _state(cell)) for name, cell in states.items()}
    if isinstance(value, str) and value.strip().startswith("{"):
        value = _object_of(value)
    if isinstance(value, Mapping):
        return labels | {name: parse_state(name, _state(state)) for name, state in value.items()}
    names = as_list(value)
    if len(names) == 1 and isinstance(names[0], str):
        names = re.split(r"[,;|]", names[0]) if not _is_list(value) else names
    if not isinstance(value, (str, list, tuple)) and value is not None and value == value:
        raise EntryError("impossible label", f"labels {value!r:.60} is neither names nor an object")
    for name in names:
        if not (isinstance(name, str) or name is None or name != name):
            raise EntryError("impossible label", f"{name!r:.60} in labels is no name")
    words = [text_of(name) for name in names]
    return labels | {word: 1 for word in words if word and word.lower() not in MISSING}


def _object_of(text: str) -> Any:
    """An object written as text, JSON's or Python's."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise EntryError("impossible label", f"labels {text!r:.100} is not JSON: {error}") from error


def _is_list(value: Any) -> bool:
    text = text_of(value)
    return isinstance(value, (list, tuple)) or text[:1] + text[-1:] in ("[]", "()")


def _state(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in MISSING else value


def pair_views(views: Sequence[Any], count: int) -> list[str | None]:
    """A view for each of `count` images: one for all, or one each; none where the numbers do not fit."""
    known = [view_of(view) for view in views]
    return known if len(known) == count else known * count if len(known) == 1 else [None] * count
