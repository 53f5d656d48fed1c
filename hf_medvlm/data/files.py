"""Files that are whole or absent: written beside, renamed at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

    A killed run, an exception or a full disk leaves neither a half file nor a changed one. Text is UTF-8 with `\\n`.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the message names the final path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(beside, mode, **text) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """One JSON document, indented, keys in the order given."""
    with atomic_open(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
