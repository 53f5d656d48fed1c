"""The columns of a large master file: where each study begins, and what splits, checks and counts ask of all of them.

They are made once, in parallel, and kept as memory-mapped Arrow files in `cache_folder()` as long as the master file
stays as it is. Every study is checked on the way, as `read_jsonl` does it. Ids and paths become small numbers, so that
a start sorts and hashes nothing.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_medvlm.data.column_parts import COLUMNS, LINE, NotPlain, read_lines, read_records
from hf_medvlm.data.files import atomic_open, available_cores, cache_folder, machine_lock, short_hash
from hf_medvlm.data.parquet import ROWS, count_rows, is_parquet, read_batches
from hf_medvlm.data.verification import settled, stat_file

logger = logging.getLogger(__name__)
VERSION = 2
PART = 4 * 2**20
"""Bytes of the master file that a worker takes at a time."""
CODED = ("source", "licence", "labels", "progression")
"""Texts that many studies share: each study has the number of one of the different ones."""
ABSENT = -2
"""In the column `prior`: a prior is named, and is not in the file."""


@dataclass(frozen=True)
class Columns:
    """What is known of the n studies of a master file.

    Args:
        numbers: `offset`, `length` (n,) of a study's line; `patient` (n,) number of its patient; `split` (n,) place in
            `SPLITS` or -1; `has` (n,) bits; `prior` (n,) number of the study before it, -1 none, `ABSENT`;
            `image_start` (n + 1,) where its images begin in `image`, which has the number of each path; `source`,
            `licence`, `labels`, `progression` (n,) places in `coded`; `sorted_study` the hashes of the ids, sorted, and
            `sorted_row` whose they are.
        coded: the different texts of `CODED`.
        texts: `column_parts.COLUMNS`, in many chunks.
    """

    numbers: Mapping[str, np.ndarray]
    coded: Mapping[str, Sequence[str]]
    texts: pa.Table

    def __len__(self) -> int:
        return len(self.numbers["split"])


def open_columns(path: Path) -> Columns:
    """The columns of a master file, memory-mapped; made where there are none of this very file.

    Raises:
        NotPlain: a line that is no study, an id that stands twice, a file in another encoding than UTF-8.
        ValueError: of Parquet: a row that is no study, an id that stands twice, a damaged file.
    """
    folder, name = cache_folder() / "columns", short_hash(str(path.resolve()))
    stores = folder / f"{name}.arrow", folder / f"{name}.numbers.arrow"
    size, time = stat_file(path)
    key = json.dumps({"size": size, "time": time, "version": VERSION}).encode()
    with machine_lock(str(stores[0])):
        columns = _opened(stores, key)
        if columns is None:
            if not settled(np.array([time]))[0]:
                key = b""  # it may change again unnoticed
            columns = _build(path, stores, key)
    return columns


def _opened(stores: tuple[Path, Path], key: bytes) -> Columns | None:
    """The columns that have this key; None where there are none."""
    texts, numbers = map(_mapped, stores)
    if texts is None or numbers is None:
        return None
    if any((table.schema.metadata or {}).get(b"of") != key for table in (texts, numbers)):
        return None
    values = {name: numbers[name].chunk(0).values for name in numbers.column_names}
    coded = {name: values.pop(f"{name}_texts").to_pylist() for name in CODED}
    return Columns({name: value.to_numpy() for name, value in values.items()}, coded, texts)


def _mapped(store: Path) -> pa.Table | None:
    try:
        with pa.memory_map(str(store)) as source:
            return pa.ipc.open_file(source).read_all()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be read (%s) and is made anew", store, error)
        return None


def _build(path: Path, stores: tuple[Path, Path], key: bytes) -> Columns:
    stores[0].parent.mkdir(parents=True, exist_ok=True)
    schema = (COLUMNS.append(LINE) if is_parquet(path) else COLUMNS).with_metadata({"of": key})
    with atomic_open(stores[0], "wb") as handle, pa.ipc.new_file(handle, schema) as writer:
        for batch in _read(path):
            writer.write_batch(batch)
    if available_cores() > 1 and path.stat().st_size > PART:  # what that takes of memory goes with its process
        with ProcessPoolExecutor(1) as pool:
            pool.submit(_write_numbers, path, stores, key).result()
    else:
        _write_numbers(path, stores, key)
    pa.default_memory_pool().release_unused()
    columns = _opened(stores, key)
    if columns is None:
        raise OSError(f"{stores[1]}: written, and cannot be read again; is the disk sound?")
    return columns


def _write_numbers(path: Path, stores: tuple[Path, Path], key: bytes) -> None:
    texts = _mapped(stores[0])
    if texts is None:
        raise OSError(f"{stores[0]}: written, and cannot be read again; is the disk sound?")
    lists = {}
    for name, values in _numbers(path, texts):
        array = values if isinstance(values, pa.Array) else pa.array(values)
        lists[name] = pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
    table = pa.table(lists).replace_schema_metadata({"of": key})
    with atomic_open(stores[1], "wb") as handle, pa.ipc.new_file(handle, table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    """The columns of all parts, in their order."""
    from tqdm import tqdm

    if is_parquet(path):
        work: Callable[..., pa.RecordBatch] = read_records
        count, unit = -(-count_rows(path) // ROWS), f" x {ROWS} studies"
        parts: Iterable[tuple[Any, ...]] = ((str(path), batch, first) for first, batch in read_batches(path))
    else:
        with open(path, "rb") as raw:
            if raw.read(3)[:2] in (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb"):
                raise NotPlain("a byte order mark")
        work, unit = read_lines, " x 4 MiB"
        parts = [(str(path), begin, end) for begin, end in _parts(path)]
        count = len(parts)
    cores = min(available_cores(), count)
    with tqdm(desc=f"Reading {path.name}", total=count, unit=unit, disable=None) as bar:
        if cores < 2:
            made: Iterator[pa.RecordBatch] = (work(*part) for part in parts)
        else:
            made = _in_parallel(work, parts, cores)
        for batch in made:
            yield batch
            bar.update()


def _in_parallel(
    work: Callable[..., pa.RecordBatch], parts: Iterable[tuple[Any, ...]], cores: int
) -> Iterator[pa.RecordBatch]:
    """`work` of each part, in their order; few are read ahead."""
    pool = ProcessPoolExecutor(cores)
    ahead: deque[Any] = deque()
    try:
        for part in parts:
            ahead.append(pool.submit(work, *part))
            if len(ahead) > 2 * cores:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _parts(path: Path) -> Iterator[tuple[int, int]]:
    """(begin, end) of parts of about `PART` bytes, each of whole lines."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        begin = 0
        while begin < size:
            handle.seek(min(begin + PART, size))
            handle.readline()
            end = handle.tell()
            yield begin, end
            begin = end


def _numbers(path: Path, texts: pa.Table) -> Iterator[tuple[str, np.ndarray | pa.Array]]:
    """`Columns.numbers` and `coded`, one after the other; at most one column's hashes are held at a time."""
    for name in ("offset", "length", "split", "has"):
        yield name, _whole(texts[name])
    order, ids = _sorted(_whole(texts["study"]))
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        first, again = sorted(order[twice[0] : twice[0] + 2].tolist())
        if not is_parquet(path):
            raise NotPlain("an id stands twice")
        named = json.loads(texts["line"][again].as_py())["study_id"]
        raise ValueError(f"{path}: row {again + 1}: study_id {named!r:.100} stands already in row {first + 1}")
    yield "sorted_study", ids
    yield "sorted_row", order
    yield "prior", np.concatenate([_priors(chunk, ids, order) for chunk in texts["prior"].chunks] or [_NONE])
    del order, ids
    yield "patient", _dense(_whole(texts["patient"]))
    yield "image", _dense(np.concatenate([chunk.flatten().to_numpy() for chunk in texts["image"].chunks] or [_NONE]))
    counts = np.concatenate([chunk.value_lengths().to_numpy() for chunk in texts["image"].chunks] or [_NONE])
    yield "image_start", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    for name in CODED:
        numbers: dict[str, int] = {}
        codes = [_codes(chunk.dictionary_encode(), numbers) for chunk in texts[name].chunks]
        yield name, np.concatenate(codes or [_NONE]).astype(np.int16 if len(numbers) < 2**15 else np.int32)
        yield f"{name}_texts", pa.array(list(numbers), pa.string())


_NONE = np.zeros(0, np.int32)


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([chunk.to_numpy() for chunk in column.chunks] or [_NONE])


def _sorted(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int32 places in order, and the sorted hashes; equal ones stand as they came."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return order, hashes[order]


def _dense(hashes: np.ndarray) -> np.ndarray:
    """(n,) int32: equal hashes get the same number, from 0 on."""
    order, ranks = _sorted(hashes)
    numbers = np.zeros(len(ranks), np.int32)
    if len(ranks):
        np.cumsum(ranks[1:] != ranks[:-1], out=numbers[1:])
    codes = np.empty_like(numbers)
    codes[order] = numbers
    return codes


def _priors(chunk: pa.Array, ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(n,) int32: the number of the study whose hash it is, -1 where there is none, `ABSENT` where it is no study's."""
    named = np.asarray(chunk.is_valid())
    wanted = chunk.fill_null(0).to_numpy()[named]
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    priors = np.full(len(named), -1, np.int32)
    priors[named] = np.where(ids[place] == wanted, order[place], ABSENT)
    return priors


def _codes(chunk: pa.DictionaryArray, numbers: dict[str, int]) -> np.ndarray:
    """(n,) int32 places of the chunk's texts in `numbers`, which grows."""
    of_chunk = np.array([numbers.setdefault(text, len(numbers)) for text in chunk.dictionary.to_pylist()], np.int32)
    return of_chunk[chunk.indices.to_numpy()]
