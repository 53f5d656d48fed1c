"""Which images can be used: every file is decoded once, and what was found is remembered as long as it stays as it is.

The facts of one image folder lie in one Parquet file of `cache_folder()`, for all runs and processes: path, size, time
of change, and why the image cannot be used, if it cannot. Facts that another version of the readers or of a decoder
found count for nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    folder = Path(folder)
    unique = pc.unique(paths if isinstance(paths, pa.Array | pa.ChunkedArray) else pa.array(paths, pa.string()))
    store = store_of(folder)
    with machine_lock(str(store)):
        sizes, times = stat_files(folder, unique, workers)
        known = _read(store)
        place = pc.index_in(unique, known["path"].combine_chunks()).fill_null(-1).to_numpy(zero_copy_only=False)
        same = place >= 0
        for name, now in (("size", sizes), ("time", times)):
            if len(known):
                same &= known[name].to_numpy()[place] == now
        reasons: dict[int, str] = {}
        if len(known):
            unusable = np.asarray(pc.is_valid(known["reason"]))[place] & same
            texts = known["reason"].take(pa.array(place[unusable])).to_pylist()
            reasons = dict(zip(np.flatnonzero(unusable).tolist(), texts, strict=True))
        new = np.flatnonzero(~same)
        if len(new):
            decoded = _decode(folder, unique.take(pa.array(new)), (sizes[new], times[new]), known, store, workers)
            reasons |= {number: reason for number, reason in zip(new.tolist(), decoded, strict=True) if reason}
    return {unique[number].as_py(): reasons[number] for number in sorted(reasons)}


def store_of(folder: str | Path) -> Path:
    """The file that remembers the images of a folder."""
    return cache_folder() / "verified" / f"{short_hash(str(Path(folder).resolve()))}.parquet"


def stat_files(
    folder: Path, paths: pa.Array, workers: int | None = None, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 each: bytes and time of change (ns) of the files; -1 where there is none, or none that may be seen."""

    def look(start: int) -> np.ndarray:
        names = paths.slice(start, block).to_pylist()
        return np.array([stat_file(os.path.join(folder, path)) for path in names], np.int64)

    with ThreadPoolExecutor(workers) as pool:
        blocks = list(pool.map(look, range(0, len(paths), block)))
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


def _read(store: Path) -> pa.Table:
    """What is remembered; nothing where there is no such file, or one of other decoders, or a broken one."""
    nothing = SCHEMA.empty_table()
    if not store.exists():
        return nothing
    try:
        with library_errors(str(store), "", ()):
            known = pq.read_table(store, memory_map=True)
    except ValueError as error:
        logger.warning("%s cannot be read (%s): all images are checked again", store, error)
        return nothing
    return (
        known.replace_schema_metadata() if (known.schema.metadata or {}).get(b"by") == decoders().encode() else nothing
    )


def remember(folder: str | Path, facts: Sequence[tuple[str, int, int, str | None]]) -> None:
    """Keep what somebody else has found who decoded images: (path, size, time of change, why it cannot be used)."""
    store = store_of(folder)
    if facts:
        with machine_lock(str(store)):
            _save(store, _read(store), *zip(*facts, strict=True))


def _decode(
    folder: Path,
    paths: pa.Array,
    facts: tuple[np.ndarray, np.ndarray],
    known: pa.Table,
    store: Path,
    workers: int | None,
) -> list[str | None]:
    """Check files and remember them; the reason of each, None where it can be used."""
    from tqdm import tqdm

    reasons: list[str | None] = []
    saved = time.monotonic()
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(desc="Checking images", total=len(paths), unit="image", disable=None) as bar,
        ):
            for start in range(0, len(paths), BLOCK):
                files = [folder / path for path in paths.slice(start, BLOCK).to_pylist()]
                for reason in pool.map(why_unusable, files):
                    reasons.append(reason)
                    bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(store, known, paths, *facts, reasons)
                    saved = time.monotonic()
    finally:  # an interrupted check goes on from here
        _save(store, known, paths, *facts, reasons)
    return reasons


def _save(
    store: Path,
    known: pa.Table,
    paths: Sequence[str] | pa.Array,
    sizes: Sequence[int] | np.ndarray,
    times: Sequence[int] | np.ndarray,
    reasons: Sequence[str | None],
) -> None:
    """Write `known` with the first `len(reasons)` files in place of what it said of them."""
    count = len(reasons)
    columns = [
        pa.array(column[:count], kind.type) for column, kind in zip((paths, sizes, times, reasons), SCHEMA, strict=True)
    ]
    new = pa.table(columns, schema=SCHEMA)
    new = new.filter(pa.array(settled(np.array(times[:count])) & (np.array(sizes[:count]) >= 0)))
    others = known.filter(pc.invert(pc.is_in(known["path"], value_set=new["path"].combine_chunks())))
    try:
        with atomic_open(store, "wb") as handle:
            table = pa.concat_tables([others, new]).replace_schema_metadata({"by": decoders()})
            pq.write_table(table, handle, compression="zstd")
    except OSError as error:
        logger.warning("what was checked is not remembered, and will be checked again: %s", error)
