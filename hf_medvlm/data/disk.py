"""A disk that takes no more: any library's error for it becomes one sentence that names what was being written."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hf_medvlm.data.files import cache_folder
from hf_medvlm.errors import clipped

LONGEST = 4000
"""Letters of a message; a longer one quotes a path or a value that nobody reads to its end."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
"""The errors of a place that takes nothing at all, whatever room there is."""
OUTPUTS = ("--output_dir", "--out", "--to", "--page", "--image_cache")
"""The options of our programs that name a place to write to."""
PLACE = re.compile(r"could not (?:write|make)(?: to)?(?: the folder)? (.+): ")
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


def sentence(error: BaseException, words: Sequence[str], option: str = "") -> str:
    """An error as its user reads it. What the system says of a full or closed place gets a way out.

    Args:
        words: the command line, whose option for that place is named.
        option: what else would name the place, where the command line did not.
    """
    text = str(error) if len(str(error)) <= LONGEST else clipped(str(error))
    if not isinstance(error, OSError):
        return text
    number = error.errno
    if number in FULL and error.filename is not None and not text.startswith("could not"):
        text = f"could not write {os.fsdecode(error.filename)}: {error.strerror}"
    text = text.removeprefix(f"[Errno {number}] ")
    for code in FULL | CLOSED:
        if text.endswith(os.strerror(code)):
            named = PLACE.search(text)
            place = Path(named[1]) if named else Path(os.fsdecode(error.filename or ""))
            another = _another(place, words) or f"name another place with {option}".removesuffix(" with ")
            return f"{text}; {another}" if code in CLOSED else f"{text}. Free some space, or {another}"
    return text


def _another(place: Path, words: Sequence[str]) -> str:
    """What names another place than `place`: its option, or the variable of the environment; "" for neither."""
    written, place = place, place.absolute()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=") if "=" in word else (word, "", following)
        named = Path(value).absolute()
        if option in OUTPUTS and value and (place.is_relative_to(named) or named.is_relative_to(place)):
            return f"name another place with {option}"
    if place.is_relative_to(cache_folder().absolute()):
        return "name another folder in the environment as HF_MEDVLM_CACHE"
    # a relative place is the program's own choice, wherever it was started
    if tempfile.tempdir and written.is_absolute() and place.is_relative_to(Path(tempfile.tempdir).absolute()):
        return "name another folder in the environment as TMPDIR"
    return ""
