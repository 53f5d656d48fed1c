"""One folder, one writer: a small file says which process writes to a folder, until that process has ended."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

LOCK = ".in_use.json"
_held: dict[Path, int] = {}
"""Folder -> the process that took it (a forked one has a copy of this, and gives nothing back)."""


def take(folder: str | Path, way_out: str = "") -> None:
    """Write this process's name into `folder`, which is made where there is none. Taken twice by one process is once.

    What a process of this machine held that is gone is taken over, and that is said.

    Raises:
        ValueError: another process writes to it, or one of another machine may; the message ends with `way_out`.
        OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _take(folder, way_out)
    except OSError as error:
        raise OSError(f"could not write to {folder}: {error.strerror or error}") from error
    if not _held:
        atexit.register(release_all)
    _held[folder.resolve()] = os.getpid()


def _take(folder: Path, way_out: str) -> None:
    lock = folder / LOCK
    holder = _read(lock)
    if holder is not None:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        if holder.get("host") != socket.gethostname():
            raise ValueError(
                f"{folder} is in use by {who}. Whether that still runs cannot be seen from this machine: if it does "
                f"not, delete {lock}{way_out}"
            )
        if _lives(holder) and holder.get("pid") == os.getpid():
            return
        if _lives(holder):
            raise ValueError(f"{folder} is in use by {who}{way_out}")
        print(f"{folder}: {who}, has ended without giving it back; it is taken over", file=sys.stderr, flush=True)
    beside = folder / f"{LOCK}.{os.getpid()}"
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    mine["since"] = datetime.now().isoformat(" ", "seconds")
    beside.write_text(json.dumps(mine), encoding="utf-8")
    os.replace(beside, lock)


def release(folder: str | Path) -> None:
    """Give a folder back, if this process holds it; where nothing was written to it, it goes."""
    folder = Path(folder).resolve()
    if _held.get(folder) != os.getpid():
        return
    del _held[folder]
    (folder / LOCK).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def release_all() -> None:
    """Give back whatever this process holds."""
    for folder in [*_held]:
        release(folder)


def held() -> list[Path]:
    """The folders that this process holds, in the order it took them."""
    return [folder for folder, pid in _held.items() if pid == os.getpid()]


@contextmanager
def taken(folder: str | Path, way_out: str = "") -> Iterator[None]:
    """`take`, and `release` at the end; a folder that this process held before stays held."""
    try:
        before = _held.get(Path(folder).resolve()) == os.getpid()
    except (RuntimeError, ValueError) as error:  # a link to itself, a name that no file can have
        raise OSError(f"could not write to {str(folder)!r:.300}: {str(error).partition(' from ')[0]}") from error
    take(folder, way_out)
    try:
        yield
    finally:
        if not before:
            release(folder)


def is_abandoned(folder: str | Path) -> bool:
    """Whether a process of this machine took a folder and has ended without giving it back."""
    holder = _read(Path(folder) / LOCK)
    return holder is not None and holder.get("host") == socket.gethostname() and not _lives(holder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time looks at a lock and writes it; some network disks cannot promise that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a disk without locks: what is left is the file itself
        yield
    finally:
        os.close(handle)


def _read(lock: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where nobody does."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}  # of nobody who could be asked
    return holder if isinstance(holder, dict) else {}


def _started(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where there is none of that number."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.Error:
        return None


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock on this machine still runs, and not another of the same number."""
    pid, started = holder.get("pid"), holder.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return False
    began = _started(pid)
    return began is not None and abs(began - started) < 5  # the clock may have been set meanwhile
