"""A disk that takes no more: any library's error for it becomes one sentence that names what was being written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
WRITER = re.compile(r"PytorchStreamWriter|unexpected pos|inline_container|file write failed|iostream")
RUST = re.compile(r"os error (\d+)|I/?O error:? ?(.*)", re.IGNORECASE)


@contextmanager
def naming_what_is_written(what: str | Path, way_out: str = "") -> Iterator[None]:
    """Any library's own error for a disk that is full or may not be written to becomes one sentence.

    Raises:
        OSError: the disk took no more; the message names `what` and ends with `way_out`. Other errors stay as they are.
    """
    try:
        yield
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise OSError(f"could not write {what}: {reason}{way_out}") from error


def disk_trouble(error: BaseException) -> str | None:
    """What the system said of the disk, where that is what an error of torch, safetensors or tokenizers comes from."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return reason.rpartition(": ")[2] if reason.startswith("could not write") else reason
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return os.strerror(seen.errno)
        rust = RUST.search(str(seen))
        if rust:
            return os.strerror(int(rust[1])) if rust[1] else rust[2].strip()
        seen = seen.__cause__ or seen.__context__
    return f"{os.strerror(errno.ENOSPC)}, or it may not grow" if WRITER.search(str(error)) else None
