"""What is done to a good input: to its bytes, its JSON, its table. Each function says in words what it did."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "[" * 100_000
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, -0.0, float("nan"), float("inf"), float("-inf"), 10**30, 2**63, 1e308, 123.0),
    *("", " ", "nan", "None", "N/A", "0", "-1", "1e999", "true", "x", "a\0b", "\u2028", "é" * 3, "=1+1", "<script>"),
    *(-(10**12), 2**31, 0.1, 5e-324, "é\u0301", "\u2029", "1e5", "NaN", "[PAD]", "float32", "auto"),
    *("../../../etc/passwd", "/etc/passwd", "C:\\x.png", "\\\\host\\x", "http://h/x.png", "~root/x", "a/./b", "."),
    *("x" * 100_000, "constructor", "__proto__", "\u202e", "2020-13-45", "1;2", "[1, 2]", '{"a": 1}', "'a', 'b'"),
    *(
        [],
        {},
        [[]],
        [None],
        [1, 2],
        ["a", "b"],
        [{}],
        {"a": 1},
        {"path": "x"},
        {"": None},
        [["a"], ["b"]],
        [float("nan")],
    ),
]


def bytes_of(content: bytes, rng: Random) -> tuple[bytes, str]:
    """A file's content, damaged."""
    size = len(content)
    place = rng.randrange(size + 1)

    def flip(count: int) -> bytes:
        damaged = bytearray(content)
        for _ in range(count if damaged else 0):
            damaged[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(damaged)

    ways: list[tuple[str, Callable[[], bytes]]] = [
        ("cut short", lambda: content[:place]),
        ("cut short early", lambda: content[: rng.randrange(min(size, 600) + 1)]),
        ("one bit flipped", lambda: flip(1)),
        ("bits flipped", lambda: flip(rng.randint(2, 40))),
        ("empty", lambda: b""),
        ("zeros at the end", lambda: content[:place] + bytes(size - place)),
        ("random bytes inside", lambda: content[:place] + rng.randbytes(rng.randint(1, 64)) + content[place:]),
        ("a piece missing", lambda: content[:place] + content[place + rng.randint(1, 64) :]),
        ("a piece twice", lambda: content[:place] + content[max(0, place - 200) :]),
        ("a web page", lambda: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"),
        ("an LFS pointer", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ("UTF-16", lambda: content.decode("utf-8", "replace").encode("utf-16")),
        ("a byte order mark", lambda: b"\xef\xbb\xbf" + content),
        ("bytes of latin-1", lambda: content[:place] + "é°ü".encode("latin-1") + content[place:]),
        ("a NUL inside", lambda: content[:place] + b"\0" + content[place:]),
        ("nested deep", lambda: DEEP.encode()),
        ("random bytes", lambda: rng.randbytes(rng.randint(1, 3000))),
        ("trailing bytes", lambda: content + rng.randbytes(20)),
        ("carriage returns", lambda: content.replace(b"\n", b"\r\n" if rng.random() < 0.5 else b"\r")),
    ]
    what, make = rng.choice(ways)
    return make(), what


SPECIAL = {
    "a pipe": lambda path: os.mkfifo(path),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/urandom": lambda path: path.symlink_to("/dev/urandom"),
}
"""What a reader may wait for without end; a process without limits leaves these out."""
NO_FILE: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "missing": lambda path: None,
}


def special(path: Path, rng: Random) -> str:
    """Put something that is no plain file in the place of `path`."""
    if path.exists():
        path.unlink()
    ways = SPECIAL | NO_FILE
    what = rng.choice(list(ways))
    ways[what](path)
    return what


def json_value(document: Any, rng: Random) -> tuple[Any, str]:
    """A JSON document with something odd at a place of it."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places or rng.random() < 0.05:
        value = rng.choice(ODD)
        return value, f"the document is {short(value)}"
    holder, key = rng.choice(places)
    way = rng.random()
    if way < 0.12:
        del holder[key]
        return document, f"{key!r:.30} missing"
    if way < 0.2 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
        return document, f"{key!r:.30} renamed"
    if way < 0.27 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
        return document, "an entry twice"
    value = copy.deepcopy(rng.choice(ODD))
    if way > 0.9:
        value = [holder[key]]
    holder[key] = value
    return document, f"{key!r:.30} is {short(value)}"


def json_text(document: Any, rng: Random, lines: bool = False) -> tuple[bytes, str]:
    """A document, or records as JSON Lines, with an odd value in it, as bytes; now and then damaged as bytes too."""
    if rng.random() < 0.25:
        return bytes_of(_dump(document, lines), rng)
    document, what = json_value(document, rng)
    if lines and not isinstance(document, list):
        lines = False
    content = _dump(document, lines)
    if rng.random() < 0.06:
        content, what = content.replace(b'"', b'"\\ud800', 1), f"{what}, half a surrogate pair"
    return content, what


def _dump(document: Any, lines: bool) -> bytes:
    if lines:
        return "".join(json.dumps(record) + "\n" for record in document).encode()
    return json.dumps(document, indent=1).encode()


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield value, key
        yield from _places(part)


def table_text(rows: list[list[str]], rng: Random, delimiter: str = ",") -> tuple[bytes, str]:
    """A table with an odd cell, row or header; now and then damaged as bytes."""
    rows = [list(row) for row in rows]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    way = rng.randrange(10)
    what = ""
    if way < 4:
        value = rng.choice(ODD)
        rows[row][column] = value if isinstance(value, str) else json.dumps(value)
        what = f"a cell is {short(value)}"
    elif way == 4:
        rows[row] = rows[row][: column + 1] if rng.random() < 0.5 else [*rows[row], "more"]
        what = "a row of another width"
    elif way == 5:
        rows[0][column] = rows[0][column - 1] if rng.random() < 0.5 else ""
        what = "a header twice or empty"
    elif way == 6:
        rows = [rows[0]] if rng.random() < 0.5 else rows[1:]
        what = "no rows, or no header"
    elif way == 7:
        rows.insert(row, rows[-1])
        what = "a row twice"
    text = "\n".join(delimiter.join(_cell(cell, delimiter) for cell in row) for row in rows) + "\n"
    if way == 8:
        place = rng.randrange(len(text))
        return (text[:place] + '"' + text[place:]).encode(), "an open quote"
    if way == 9:
        return bytes_of(text.encode(), rng)
    return text.encode("utf-8", "surrogatepass"), what


def _cell(cell: str, delimiter: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in (delimiter, '"', "\n")) else cell


def short(value: Any) -> str:
    """A value in a few letters."""
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} letters)"
