"""Which images can be used: every file is decoded once, and what was found is remembered as long as it stays as it is.

The facts of one image folder lie in one Parquet file of `cache_folder()`, for all runs and processes: path, size, time
of change, and why the image cannot be used, if it cannot. Facts that another version of the readers or of a decoder
found count for nothing.

Of millions of images only numbers are held: paths are hashed as they are read, a row group at a time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_medvlm.data.files import atomic_open, cache_folder, machine_lock, short_hash
from hf_medvlm.data.images.members import stat_image
from hf_medvlm.data.images.read import why_unusable
from hf_medvlm.errors import library_errors

logger = logging.getLogger(__name__)
READING = 2
"""Raised by whoever changes what `open_radiograph` gives of a file, or what counts as unusable."""
DECODERS = ("pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm")
SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("time", pa.int64()), ("reason", pa.string())])
SAVE_EVERY = 60.0
"""Seconds after which what has been found is written, so that a killed process loses no more."""
BLOCK = 1024
ROW_GROUP = 128 * BLOCK
SETTLED = 20_000_000
"""Nanoseconds within which a file may change twice without another time of change; of a disk that keeps whole seconds
two of them."""


def check_images(folder: str | Path, paths: Iterable[str], workers: int | None = None) -> dict[str, str]:
    """Decode every image to its last pixel, in parallel, unless it is known; give the reason for each unusable one.

    A picture that has one grey value alone is among them: nothing can be learnt from it. Of several processes on a
    machine one decodes; the others wait for it, and then know.

    Args:
        paths: relative to `folder`.
        workers: threads (the decoders release Python's lock); by default as many as `ThreadPoolExecutor` takes.

    Returns:
        Path -> reason, in the order of `paths`.
    """
    folder, arrow = Path(folder), isinstance(paths, pa.Array | pa.ChunkedArray)
    table: pa.ChunkedArray = pa.chunked_array([paths] if isinstance(paths, pa.Array) else paths) if arrow else None
    if table is None:
        table = pa.chunked_array([pa.array(paths, pa.string())])
    hashes = _hashes(table)
    first = np.sort(np.unique(hashes, return_index=True)[1])  # where a path stands first
    hashes = hashes[first]
    store = store_of(folder)
    with machine_lock(str(store)):
        sizes, times = stat_files(folder, table, workers, rows=first)
        known = _read(store)
        same, reasons = known.compare(hashes, sizes, times)
        new = np.flatnonzero(~same)
        if len(new):
            decoded = _decode(folder, table, (first[new], sizes[new], times[new]), store, workers)
            reasons |= {number: reason for number, reason in zip(new.tolist(), decoded, strict=True) if reason}
    return {table[int(first[number])].as_py(): reasons[number] for number in sorted(reasons)}


def _hashes(paths: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(n,) int64: a number for each path, the same all through this process.

    Among three million paths two have the same one with a chance of 3 in 10 million. Bytes and time of change would
    have to agree too.
    """
    parts = [np.fromiter(map(hash, names), np.int64, len(names)) for names in _blocks(paths)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _blocks(paths: pa.Array | pa.ChunkedArray, size: int = 64 * BLOCK) -> Iterator[list[str]]:
    for start in range(0, len(paths), size):
        yield paths.slice(start, size).to_pylist()


def _taken(paths: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The paths of some rising rows. Arrow's own `take` puts all chunks of a table together first."""
    if not len(rows):
        return pa.array([], pa.string())
    part = paths.slice(rows[0], rows[-1] + 1 - rows[0])
    whole = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
    return whole.take(pa.array(rows - rows[0]))


@dataclass(frozen=True)
class _Known:
    """What is remembered of images, in the order of `hashes`, (n,) int64, rising; (n,) `sizes` and `times`; `reasons`
    of those that cannot be used, by place."""

    hashes: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    reasons: dict[int, str]

    def compare(self, hashes: np.ndarray, sizes: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """(n,) whether a file is known as it is now; and why it cannot be used, by number."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool), {}
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        same = (self.hashes[place] == hashes) & (self.sizes[place] == sizes) & (self.times[place] == times)
        unusable = np.flatnonzero(same & np.isin(place, list(self.reasons))).tolist() if self.reasons else []
        return same, {number: self.reasons[int(place[number])] for number in unusable}


def store_of(folder: str | Path) -> Path:
    """The file that remembers the images of a folder."""
    return cache_folder() / "verified" / f"{short_hash(str(Path(folder).resolve()))}.parquet"


def stat_files(
    folder: Path,
    paths: pa.Array | pa.ChunkedArray,
    workers: int | None = None,
    block: int = BLOCK,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 each: bytes and time of change (ns) of the files; -1 where there is none, or none that may be seen.

    Args:
        rows: the numbers of the paths to look at; all by default.
    """
    count = len(paths) if rows is None else len(rows)

    def look(start: int) -> np.ndarray:
        some = paths.slice(start, block) if rows is None else _taken(paths, rows[start : start + block])
        return np.array([stat_file(os.path.join(folder, path)) for path in some.to_pylist()], np.int64)

    with ThreadPoolExecutor(workers) as pool:
        blocks = list(pool.map(look, range(0, count, block)))
    facts = np.concatenate(blocks) if blocks else np.zeros((0, 2), np.int64)
    return facts[:, 0], facts[:, 1]


def stat_file(path: str | Path) -> tuple[int, int]:
    """Bytes and time of change (ns) of a file; -1 where there is none, or none that may be seen."""
    try:
        status = stat_image(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def settled(times: np.ndarray) -> np.ndarray:
    """Whether a file that changes from now on will have another time of change than `times` (ns) says."""
    needed = np.where(times % 1_000_000_000 == 0, 2_000_000_000, SETTLED)
    return time.time_ns() - times > needed


def decoders() -> str:
    """What decides whether a file can be read, as text."""
    versions = []
    for package in DECODERS:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"reading {READING}, {', '.join(versions)}"


def _read(store: Path) -> _Known:
    """What is remembered; nothing where there is no such file, or one of other decoders, or a broken one."""
    hashes, sizes, times = ([np.zeros(0, np.int64)] for _ in range(3))
    reasons: dict[int, str] = {}
    count = 0
    for part in _row_groups(store):
        hashes.append(_hashes(part["path"]))
        sizes.append(part["size"].to_numpy())
        times.append(part["time"].to_numpy())
        for row in np.flatnonzero(np.asarray(pc.is_valid(part["reason"]))).tolist():
            reasons[count + row] = part["reason"][row].as_py()
        count += len(part)
    together = np.concatenate(hashes)
    order = np.argsort(together, kind="stable")
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    told = {int(place[row]): reason for row, reason in reasons.items()}
    return _Known(together[order], np.concatenate(sizes)[order], np.concatenate(times)[order], told)


def _row_groups(store: Path) -> Iterator[pa.Table]:
    """What a store holds, piece by piece; nothing where it is of other decoders, and up to where it is broken."""
    if not store.exists():
        return
    try:
        with library_errors(str(store), "", ()):
            file = pq.ParquetFile(store)
            if (file.schema_arrow.metadata or {}).get(b"by") != decoders().encode():
                return
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, [field.name for field in SCHEMA]).replace_schema_metadata()
    except ValueError as error:
        logger.warning("%s cannot be read (%s): its images are checked again", store, error)


def remember(folder: str | Path, facts: Sequence[tuple[str, int, int, str | None]]) -> None:
    """Keep what somebody else has found who decoded images: (path, size, time of change, why it cannot be used)."""
    store = store_of(folder)
    if facts:
        paths, sizes, times, reasons = zip(*facts, strict=True)
        with machine_lock(str(store)):
            _save(store, pa.array(paths, pa.string()), np.array(sizes), np.array(times), reasons)


def _decode(
    folder: Path,
    paths: pa.ChunkedArray,
    facts: tuple[np.ndarray, np.ndarray, np.ndarray],
    store: Path,
    workers: int | None,
) -> list[str | None]:
    """Check files and remember them; the reason of each, None where it can be used.

    Args:
        facts: numbers among `paths`, bytes and times of change of the files, (n,) each.
    """
    from tqdm import tqdm

    rows, sizes, times = facts
    reasons: list[str | None] = []
    saved, done = time.monotonic(), 0

    def save() -> None:
        nonlocal saved, done
        span = slice(done, len(reasons))
        _save(store, _taken(paths, rows[span]), sizes[span], times[span], reasons[span])
        saved, done = time.monotonic(), len(reasons)

    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(desc="Checking images", total=len(rows), unit="image", disable=None) as bar,
        ):
            for start in range(0, len(rows), BLOCK):
                files = [folder / path for path in _taken(paths, rows[start : start + BLOCK]).to_pylist()]
                for reason in pool.map(why_unusable, files):
                    reasons.append(reason)
                    bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
    finally:  # an interrupted check goes on from here
        save()
    return reasons


def _save(store: Path, paths: pa.Array, sizes: np.ndarray, times: np.ndarray, reasons: Sequence[str | None]) -> None:
    """Write the store with these files, (n,) each, in place of what it said of them."""
    columns = [pa.array(column, kind.type) for column, kind in zip((paths, sizes, times, reasons), SCHEMA, strict=True)]
    new = pa.table(columns, schema=SCHEMA)
    new = new.filter(pa.array(settled(np.asarray(times)) & (np.asarray(sizes) >= 0)))
    told = SCHEMA.with_metadata({"by": decoders()})
    waiting: list[pa.Table] = []
    try:
        with atomic_open(store, "wb") as handle, pq.ParquetWriter(handle, told, compression="zstd") as writer:
            for part in _row_groups(store):
                waiting.append(part.filter(pc.invert(pc.is_in(part["path"], value_set=new["path"].combine_chunks()))))
                if sum(map(len, waiting)) >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting).cast(told), row_group_size=ROW_GROUP)
                    waiting = []
            writer.write_table(pa.concat_tables([*waiting, new]).cast(told), row_group_size=ROW_GROUP)
    except OSError as error:
        logger.warning("what was checked is not remembered, and will be checked again: %s", error)
