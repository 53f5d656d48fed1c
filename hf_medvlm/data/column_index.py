"""The columns of a large master file: where each study begins, and what splits, checks and counts ask of all of them.

They are made once, in parallel, and kept as a memory-mapped Arrow file in `cache_folder()` as long as the master file
stays as it is. Every line is checked on the way, as `read_jsonl` does it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_medvlm.data.fields import SECTIONS
from hf_medvlm.data.files import atomic_open, available_cores, cache_folder, machine_lock, short_hash
from hf_medvlm.data.study import Study
from hf_medvlm.data.verification import settled, stat_file
from hf_medvlm.labels import SPLITS

logger = logging.getLogger(__name__)
VERSION = 1
PART = 4 * 2**20
"""Bytes of the master file that a worker takes at a time."""
TEXT_BITS = {name: 1 << number for number, name in enumerate(SECTIONS)}
CONVERSATION = 1 << len(SECTIONS)
"""Bits of the column `has`: which sections a study has any text of, and whether it has a conversation."""
COLUMNS = pa.schema(
    [
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("study", pa.uint64()),
        ("patient", pa.uint64()),
        ("patient_id", pa.string()),
        ("split", pa.int8()),
        ("has", pa.uint16()),
        ("images", pa.list_(pa.string())),
        ("image", pa.list_(pa.uint64())),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""`study`, `patient` and `image` are hashes of ids and paths; `split` a place in `SPLITS`, -1 where there is none."""


class NotPlain(ValueError):
    """A file that `read_jsonl` must look at: it will say what is wrong with it, or read it."""


def hash64(text: str) -> int:
    """64 bits that stand for an id or a path."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def open_columns(path: Path) -> pa.Table:
    """The columns of a master file, memory-mapped; made where there are none of this very file.

    Raises:
        NotPlain: a line that is no study, an id that stands twice, a file in another encoding than UTF-8.
    """
    store = cache_folder() / "columns" / f"{short_hash(str(path.resolve()))}.arrow"
    size, time = stat_file(path)
    key = json.dumps({"size": size, "time": time, "version": VERSION}).encode()
    with machine_lock(str(store)):
        table = _mapped(store)
        if table is None or (table.schema.metadata or {}).get(b"of") != key:
            if not settled(np.array([time]))[0]:
                key = b""  # it may change again unnoticed
            table = _build(path, store, key)
    if len(np.unique(table["study"].combine_chunks().to_numpy())) < len(table):
        raise NotPlain("an id stands twice")
    return table


def _mapped(store: Path) -> pa.Table | None:
    try:
        with pa.memory_map(str(store)) as source:
            return pa.ipc.open_file(source).read_all()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be read (%s) and is made anew", store, error)
        return None


def _build(path: Path, store: Path, key: bytes) -> pa.Table:
    from tqdm import tqdm

    with open(path, "rb") as raw:
        if raw.read(3)[:2] in (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb"):
            raise NotPlain("a byte order mark")
    parts = list(_parts(path))
    schema = COLUMNS.with_metadata({"of": key})
    cores = min(available_cores(), len(parts))
    pool = ProcessPoolExecutor(cores) if cores > 1 else None
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_open(store, "wb") as handle,
            pa.ipc.new_file(handle, schema) as writer,
            tqdm(desc=f"Reading {path.name}", total=len(parts), unit=" x 4 MiB", disable=None) as bar,
        ):
            paths, starts, ends = [str(path)] * len(parts), [a for a, _ in parts], [b for _, b in parts]
            made = pool.map(_read_part, paths, starts, ends) if pool else map(_read_part, paths, starts, ends)
            for batch in made:
                writer.write_batch(batch)
                bar.update()
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    table = _mapped(store)
    if table is None:
        raise OSError(f"{store}: written, and cannot be read again; is the disk sound?")
    return table


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


def _read_part(path: str, begin: int, end: int) -> pa.RecordBatch:
    with open(path, "rb") as handle:
        handle.seek(begin)
        content = handle.read(end - begin)
    columns: list[list[Any]] = [[] for _ in COLUMNS]
    offset = begin
    for line in content.split(b"\n"):
        length = len(line)
        if line.strip():
            try:
                record = json.loads(line)
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(record, ensure_ascii=False).encode()
                if not is_plain(record):
                    Study.from_dict(record)  # a study of a rarer shape, or the error that says why not
                row = _row(record)
            except (ValueError, RecursionError) as error:
                raise NotPlain(str(error)) from error
            for column, value in zip(columns, (offset, length, *row), strict=True):
                column.append(value)
        offset += length + 1
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, COLUMNS, strict=True)], schema=COLUMNS)


_PLAIN_TEXTS = ("findings", "impression", "report", "indication", "source", "licence", "comparison")
_STATES = (1, 0, -1, None)
_RARE = ("boxes", "conversations", "triplets", "progression", "answer_type", "study_date", "prior_study_id", "extra")


def is_plain(record: Any) -> bool:
    """Whether a record is surely a study, without a closer look: ids, texts, labels and safe image paths alone."""
    if type(record) is not dict or any(record.get(name) for name in _RARE):
        return False
    for name in ("study_id", "patient_id"):
        value = record.get(name)
        if type(value) is not str or not value.isascii() or not value.replace("-", "").replace("_", "").isalnum():
            return False
    if record.get("split") not in (None, *SPLITS):
        return False
    for name in _PLAIN_TEXTS:
        if type(record.get(name, "")) is not str:
            return False
    labels, images = record.get("labels", {}), record.get("images", ())
    if type(labels) is not dict or type(images) is not list:
        return False
    for name, state in labels.items():
        if not name or type(state) not in (int, type(None)) or state not in _STATES:
            return False
    for image in images:
        path = image.get("path") if type(image) is dict else None
        view = image.get("view") if path else 0
        if type(path) is not str or not (view is None or type(view) is str):
            return False
        if path[0] in "/ \t\n" or ".." in path or "\\" in path or ":" in path:
            return False
    return True


def _row(record: dict[str, Any]) -> tuple[Any, ...]:
    """The values of `COLUMNS` behind offset and length, of a record that is a study."""
    from hf_medvlm.data.fields import id_text

    patient = id_text(record.get("patient_id"), "patient_id")
    study = id_text(record.get("study_id"), "study_id")
    split = record.get("split")
    has = CONVERSATION if record.get("conversations") else 0
    for name, bit in TEXT_BITS.items():
        if (record.get(name) or "").strip():
            has |= bit
    images = [image["path"] for image in record.get("images") or ()]
    return (
        hash64(study),
        hash64(patient),
        patient,
        SPLITS.index(split) if split else -1,
        has,
        images,
        [hash64(image) for image in images],
        record.get("source") or "",
        record.get("licence") or "",
    )
