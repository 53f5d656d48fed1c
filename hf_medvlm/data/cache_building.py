"""Filling a picture cache (`cache.py`): in parallel, resumable, and whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from hf_medvlm.data.cache import (
    BATCH,
    INDEX,
    PICTURES,
    PLACES,
    Shrinking,
    make_picture,
    open_arrow,
    path_hash,
    pictures_folder,
    read_index,
    shard_names,
)
from hf_medvlm.data.files import atomic_open, available_cores, machine_lock
from hf_medvlm.data.images import one_grey
from hf_medvlm.data.images.read import why_unusable
from hf_medvlm.data.verification import remember, settled, stat_file, stat_files

SHARD = 1024
"""Pictures of a shard, at most: what a killed process loses is less than one a core."""
DAY = 86_400 * 10**9
Fact = tuple[str, int, int, str | None]
"""Path, size, time of change, and why there is no picture."""


@dataclass
class Built:
    """How many pictures are in the cache, how many of them are new, and path -> why a picture could not be made."""

    pictures: int = 0
    new: int = 0
    broken: dict[str, str] = field(default_factory=dict)


def build_cache(
    cache: str | Path, folder: str | Path, paths: Iterable[str], how: Shrinking, workers: int | None = None
) -> Built:
    """Prepare the pictures that the cache does not hold yet, or holds of a file that has changed since, in parallel.

    Shards are written beside and renamed, and the index after them: a killed process or a full disk leaves whole shards
    alone, and the next call goes on from there. Processes of a machine take turns.

    Args:
        paths: relative to `folder`.
        workers: processes; by default one a core.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    folder, pictures = Path(folder), pictures_folder(cache, folder, how)
    unique = pc.unique(paths if isinstance(paths, pa.Array | pa.ChunkedArray) else pa.array(paths, pa.string()))
    with machine_lock(str(pictures.resolve())):
        index, shards = _known(pictures)
        sizes, times = stat_files(folder, unique, workers)
        place = pc.index_in(unique, index["path"].combine_chunks()).fill_null(-1).to_numpy(zero_copy_only=False)
        same = place >= 0
        if len(index):
            for name, now in (("size", sizes), ("time", times)):
                same &= index[name].to_numpy()[place] == now
        missing = np.flatnonzero(~same)
        built = Built(int(same.sum()))
        if len(missing):
            _build(pictures, folder, how, unique.take(pa.array(missing)), index, shards, built, workers)
    return built


def _known(pictures: Path) -> tuple[pa.Table, list[str]]:
    """The index of the shards that are there, and their names; those that no index knows, or that have another size
    than it says, are opened first, and left out where they are not whole."""
    index = read_index(pictures)
    there = {path.name: path.stat().st_size for path in pictures.glob("pictures-*.arrow")}
    if there == json.loads((index.schema.metadata or {}).get(b"bytes", b"{}")):
        return index, shard_names(index)
    tables: list[pa.Table] = []
    names: list[str] = []
    for name in sorted(there):
        table = open_arrow(pictures / name)
        if table is not None:
            tables.append(_places(table, len(names)))
            names.append(name)
    return _merged(tables), names


def _places(shard: pa.Table, number: int) -> pa.Table:
    columns = {name: shard[name] for name in ("path", "size", "time")}
    columns["hash"] = pa.array([path_hash(path) for path in shard["path"].to_pylist()], pa.uint64())
    columns["shard"] = pa.array(np.full(len(shard), number, np.uint32))
    columns["row"] = pa.array(np.arange(len(shard), dtype=np.uint32))
    return pa.table([columns[name] for name in PLACES.names], schema=PLACES)


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    """One index, sorted by hash; of a path that stands in several shards the newest picture counts."""
    if not tables:
        return PLACES.empty_table()
    table = pa.concat_tables([each.replace_schema_metadata() for each in tables])
    table = table.sort_by([("hash", "ascending"), ("shard", "ascending"), ("row", "ascending")]).combine_chunks()
    hashes = table["hash"].to_numpy()
    last = np.append(hashes[1:] != hashes[:-1], True)
    return table.filter(pa.array(last))


def _build(
    pictures: Path,
    folder: Path,
    how: Shrinking,
    paths: pa.Array,
    index: pa.Table,
    shards: list[str],
    built: Built,
    workers: int | None,
) -> None:
    from tqdm import tqdm

    pictures.mkdir(parents=True, exist_ok=True)
    for half in pictures.glob(".*.part"):
        if time_ns() - half.stat().st_mtime_ns > DAY:  # of a killed process, and not of another machine's
            half.unlink(missing_ok=True)
    cores = workers or available_cores()
    each = min(SHARD, max(BATCH, -(-len(paths) // cores)))
    parts = [paths.slice(start, each).to_pylist() for start in range(0, len(paths), each)]
    make = partial(_make_shard, pictures, folder, how)
    tables = [index]
    checked: list[Fact] = []
    pool = ProcessPoolExecutor(min(cores, len(parts))) if cores > 1 and len(parts) > 1 else None
    try:
        with tqdm(desc="Preparing pictures", total=len(paths), unit="image", disable=None) as bar:
            for name, facts in pool.map(make, parts) if pool else map(make, parts):
                checked += facts
                bar.update(len(facts))
                if name is not None:
                    table = open_arrow(pictures / name)
                    if table is None:
                        raise OSError(f"{pictures / name}: written, and cannot be read again; is the disk sound?")
                    tables.append(_places(table, len(shards)))
                    shards.append(name)
                    built.new += len(table)
    except BrokenProcessPool as error:
        raise OSError("a process that prepared pictures was killed, perhaps for want of memory; start again") from error
    except OSError as error:
        free = shutil.disk_usage(pictures).free
        raise OSError(
            error.errno,
            f"{error.strerror or error}; {free / 1e9:.2f} GB are free for the pictures in {pictures}. Those that are "
            "written are whole and will be used: make room and start again, or name another cache folder",
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
        remember(folder, checked)
    built.pictures += built.new
    built.broken = {path: reason for path, _, _, reason in checked if reason}
    if built.new:
        known = {name: (pictures / name).stat().st_size for name in shards}
        merged = _merged(tables).replace_schema_metadata({"shards": json.dumps(shards), "bytes": json.dumps(known)})
        _write(pictures / INDEX, merged.to_batches())


def _make_shard(pictures: Path, folder: Path, how: Shrinking, paths: Sequence[str]) -> tuple[str | None, list[Fact]]:
    """Write the pictures of these files; the shard's name (None where there is none), and (path, size, time, why there
    is no picture) of each."""
    facts: list[Fact] = []

    def rows() -> Iterator[pa.RecordBatch]:
        made: list[tuple[Any, ...]] = []
        for path in paths:
            size, time = stat_file(folder / path)
            picture, reason = _prepare(folder, path, how)
            if (size, time) != stat_file(folder / path):
                continue  # it is being written; whoever wants it reads the file
            facts.append((path, size, time, reason))
            if picture is not None:
                pixels = picture.tobytes()
                kept = time if settled(np.array([time]))[0] else -1
                made.append((path, size, kept, *picture.size, zlib.crc32(pixels), pixels))
            if len(made) == BATCH:
                yield _record(made)
                made.clear()
        if made:
            yield _record(made)

    batches = rows()
    first = next(batches, None)
    if first is None:
        return None, facts
    name = f"pictures-{time_ns():020d}-{uuid.uuid4().hex[:8]}.arrow"  # in the order of their making
    _write(pictures / name, chain([first], batches))
    return name, facts


def _record(made: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*made, strict=True)
    return pa.record_batch(
        [pa.array(list(column), kind.type) for column, kind in zip(columns, PICTURES, strict=True)], schema=PICTURES
    )


def _prepare(folder: Path, path: str, how: Shrinking) -> tuple[Image.Image | None, str | None]:
    try:
        picture = make_picture(folder, path, how)
    except ValueError as error:
        return None, str(error).removeprefix(f"{folder / path}: ")
    reason = why_unusable(folder / path) if one_grey(picture) else None  # the whole picture decides
    return (None if reason else picture), reason


def _write(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """One Arrow file, whole or not at all."""
    iterator = iter(batches)
    first = next(iterator)
    with atomic_open(path, "wb") as handle, pa.ipc.new_file(handle, first.schema) as writer:
        writer.write_batch(first)
        for batch in iterator:
            writer.write_batch(batch)
