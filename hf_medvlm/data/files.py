"""Files that are whole or absent (written beside, renamed at the end); text and JSON read with errors that help; the
folder for what is kept from run to run, and locks between the processes of a machine."""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import io
import json
import os
import socket
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from hf_medvlm.errors import clipped


def cache_folder() -> Path:
    """What is kept from run to run: `$HF_MEDVLM_CACHE`, or `~/.cache/hf_medvlm`."""
    return Path(os.environ.get("HF_MEDVLM_CACHE", "~/.cache/hf_medvlm")).expanduser()


def available_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short_hash(text: str) -> str:
    """16 hexadecimal digits that stand for a text in a file name."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Keep other processes of this machine out while the block runs; wait where one is in it already.

    The system opens the lock of a process that has died.
    """
    from filelock import FileLock

    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{short_hash(f'{socket.gethostname()} {name}')}.lock"):
        yield


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

    A killed run, an exception or a full disk leaves neither a half file nor a changed one. Text is UTF-8 with `\\n`.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the message names the final path.
    """
    path = Path(path)
    if "\0" in str(path):
        raise OSError(errno.EINVAL, f"could not write {str(path)!r:.300}: no file can be called so")
    if os.path.exists(path) and not os.path.isfile(path):  # a device would be gone when the file takes its place
        raise OSError(errno.EINVAL, f"could not write {path}: it is {'a folder' if path.is_dir() else 'no plain file'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a part of it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(error.errno, f"could not write {clipped(str(path))}: {reason}") from error
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(beside, mode, **text) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) not in (beside, path, path.parent):
            raise  # another file, which was read for what is written here
        raise OSError(error.errno, f"could not write {clipped(str(path))}: {error.strerror or error}") from error
    finally:
        if os.path.lexists(beside):
            beside.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """One JSON document, indented, keys in the order given."""
    with atomic_open(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def plain_cell(value: Any) -> Any:
    """A cell for a CSV file that people open in a spreadsheet: a text that it would take for a formula (it begins with
    =, +, -, @, a tab or a return, and is no number) gets an apostrophe before it."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def check_regular(path: str | Path) -> None:
    """Refuse what is no plain file: a pipe or a device would keep a reader waiting for ever.

    Raises:
        ValueError: the file is missing, may not be read, or is a folder, a pipe or a device; the message names it.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: cannot be read: it is {'a folder' if stat.S_ISDIR(mode) else 'no plain file'}")


def check_place(path: str | Path, option: str = "") -> None:
    """Refuse a path that nothing can be written to: no name of a file, a pipe or a device, below a file.

    Args:
        option: that gave the path, for the message.

    Raises:
        ValueError: with the path and the reason.
    """
    named = f"{option} {clipped(str(path))!r}".strip()
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.lexists(path):
            raise ValueError(f"{named} is a link to nothing; name another place") from None
        return
    except (OSError, ValueError) as error:
        raise ValueError(f"{named}: {getattr(error, 'strerror', None) or error}; name another place") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{named} is a pipe or a device; name another place")


def check_folder(path: str | Path, option: str) -> None:
    """`check_place` of what is to be a folder.

    Raises:
        ValueError: as there; a file.
    """
    check_place(path, option)
    if os.path.isfile(path):
        raise ValueError(f"{option} {path} is a file; name a folder")


ENCODING_BY_MARK = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
"""Encodings by the byte order mark that a file begins with."""


@contextmanager
def open_text(path: str | Path, encoding: str | None = None) -> Iterator[IO[str]]:
    """Open a text file, gzipped where its name ends in `.gz`; lines end where `\\n` or `\\r` stands, nowhere else.

    Args:
        encoding: any that Python knows; by default the byte order mark decides, and UTF-8 where there is none.

    Raises:
        ValueError: no plain file, or one that may not be read; a cut gzip; bytes that are no text of that encoding. The
            message names the file, the line and the way out.
    """
    check_regular(path)
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise ValueError(
                f"--encoding {clipped(encoding)}: no such encoding; use utf-8, cp1252, latin-1 or utf-16"
            ) from error
    try:
        raw = gzip.open(path) if str(path).endswith(".gz") or _starts(path, b"\x1f\x8b") else open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    line = ":1"
    with raw:
        buffered = io.BufferedReader(raw, 1 << 20)
        try:
            start = buffered.peek(64)[:64]
            marked = next((name for m, name in ENCODING_BY_MARK.items() if start.startswith(m)), None)
            chosen = encoding or marked or _without_mark(start)
            line = ""
            with io.TextIOWrapper(buffered, encoding=chosen, newline="") as handle:
                yield handle
        except GZIP_ERRORS as error:
            raise ValueError(f"{path}{line}: {broken_gzip(error)}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}{_line_of(path, error)}: {_not_text(error, chosen)}") from error


def _starts(path: str | Path, magic: bytes) -> bool:
    with open(path, "rb") as handle:
        return handle.read(len(magic)) == magic


def _without_mark(start: bytes) -> str:
    """UTF-16 where each second byte is 0, as in English text without its mark; else UTF-8."""
    pairs = len(start) // 2
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if (
            pairs > 2
            and start[place : 2 * pairs : 2].count(0) == pairs
            and start[1 - place : 2 * pairs : 2].count(0) == 0
        ):
            return name
    return "utf-8"


GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


def broken_gzip(error: Exception) -> str:
    """What one of `GZIP_ERRORS` says of a file."""
    return f"the gzip is broken off or damaged ({error}); download it again"


def _not_text(error: UnicodeDecodeError, encoding: str) -> str:
    byte = error.object[error.start]
    return (
        f"not {encoding.upper().removesuffix('-SIG')} (byte 0x{byte:02x}: {error.reason}); save the file as UTF-8, or "
        "name its encoding with --encoding (cp1252 is what Excel writes in western Europe and America)"
    )


def _line_of(path: str | Path, error: UnicodeDecodeError) -> str:
    """ ":<line>" of the first byte that is no UTF-8; "" where the encoding or the packing is another."""
    if error.encoding not in ("utf-8", "utf_8", "utf-8-sig") or str(path).endswith(".gz"):
        return ""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f":{number}"
    return ""


def read_json(text: str, path: str | Path, line: int = 1) -> Any:
    """One JSON document that begins on this line of `path`.

    Raises:
        ValueError: no JSON; nested too deep; half a surrogate pair, which no file could hold. The message names file,
            line and column.
    """
    text = text.rstrip("\r\n")  # or what is missing at the end of a line would be looked for on the next
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        near = text[max(error.pos - 30, 0) : error.pos + 10]
        raise ValueError(
            f"{path}:{line + error.lineno - 1}: not JSON at column {error.colno}: {error.msg}, near {near!r:.100}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path}:{line}: not JSON that is read here: nested too deep") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{path}:{line}: {half!r:.100} in a text is half a surrogate pair") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}:{line}: {error}") from error


LARGEST_CONFIG = 2**16
"""Bytes of a YAML file of options: nobody writes more of them, and a reader would take minutes."""


def load_json(path: str | Path, kind: type | None = None, way_out: str = "") -> Any:
    """The JSON document that a file holds, gzipped where its name ends in `.gz`.

    Args:
        kind: `dict` or `list`, if it must be one.
        way_out: what to do where it is none, for the message.

    Raises:
        ValueError: no plain file, or one that holds no such document; the message names file and line.
    """
    with open_text(path) as handle:
        value = read_json(handle.read(), path)
    if kind is not None and not isinstance(value, kind):
        wanted = "object" if kind is dict else "list"
        more = f"; {way_out}" if way_out else ""
        raise ValueError(f"{path}: expected one JSON {wanted}, found {type(value).__name__}{more}")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The `name: value` lines of a YAML file.

    Anchors and aliases are not read: a few of them can stand for gigabytes.

    Raises:
        ValueError: no plain file, no YAML, no such lines, a name that stands twice; the message names file and line.
    """
    import yaml

    check_regular(path)
    if os.path.getsize(path) > LARGEST_CONFIG:
        raise ValueError(f"{path}: {os.path.getsize(path):,} bytes, which is no file of options")
    with open_text(path) as handle:
        text = handle.read()
    if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > 50:
        raise ValueError(f"{path}: not YAML that is read here: nested too deep")
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                line = token.start_mark.line + 1
                raise ValueError(
                    f"{path}:{line}: the alias *{clipped(token.value)} is not read; write the value itself"
                )
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {clipped(error.problem or error.context or '')}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not YAML that is read here: nested too deep") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # a date that is none, a list as a name
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: not YAML: {clipped(str(error))}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected 'name: value' lines, found a {type(content).__name__}")
    names: set[str] = set()
    for key, _ in document.value if document else ():
        if key.value in names:
            raise ValueError(f"{path}:{key.start_mark.line + 1}: {key.value!r:.100} stands twice; leave one of them")
        names.add(key.value)
    return content
