"""A master file as Parquet: the same studies as its JSONL, typed columns instead of lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_medvlm.data.files import atomic_open, check_regular
from hf_medvlm.data.study import FIELDS, Study
from hf_medvlm.errors import library_errors

SUFFIX = ".parquet"
ROWS = 8192
"""Studies of a row group, and those that a worker reads at a time."""
_TEXT = pa.string()
SCHEMA = pa.schema(
    [(name, _TEXT) for name in ("study_id", "patient_id", "split")]
    + [("images", pa.list_(pa.struct([("path", _TEXT), ("view", _TEXT)])))]
    + [(name, _TEXT) for name in ("findings", "impression", "report", "indication", "comparison")]
    + [
        ("labels", pa.list_(pa.struct([("finding", _TEXT), ("state", pa.int8())]))),
        ("prior_study_id", _TEXT),
        ("study_date", _TEXT),
        (
            "boxes",
            pa.list_(
                pa.struct(
                    [("image", pa.int32()), ("phrase", _TEXT), ("xywh", pa.list_(pa.float64())), ("finding", _TEXT)]
                )
            ),
        ),
        ("source", _TEXT),
        ("licence", _TEXT),
        ("conversations", pa.list_(pa.struct([("from", _TEXT), ("value", _TEXT)]))),
        ("triplets", pa.list_(pa.list_(_TEXT))),
        ("progression", pa.list_(pa.struct([("finding", _TEXT), ("change", _TEXT)]))),
        ("answer_type", _TEXT),
        ("extra", _TEXT),
    ]
)
"""What is written. `labels` and `progression` are lists of pairs, `extra` is the JSON of the unknown keys."""
_PAIRS = {"labels": "state", "progression": "change"}
"""Fields that are objects in JSON -> name of the second half of a pair."""


def is_parquet(path: str | Path) -> bool:
    """Whether a file is one by its name."""
    return str(path).endswith(SUFFIX)


def holds_studies(path: str | Path) -> bool:
    """Whether a Parquet file is a master file: `study_id`, and `images` that are lists of objects with a `path` (and
    no pixels); false for one that cannot be read."""
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except ValueError:
        return False
    kind = schema.field("images").type if {"study_id", "images"} <= {*schema.names} else None
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    if not pa.types.is_struct(kind.value_type):
        return False
    names = {field.name for field in kind.value_type}
    return "path" in names and "bytes" not in names


@contextmanager
def open_parquet(path: str | Path, way_out: str = "write it again", **options: Any) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened for the length of a block.

    Raises:
        ValueError: no plain file, no Parquet, or a damaged one, found on opening or inside the block; with its path.
    """
    check_regular(path)
    # an OSError or a MemoryError is what pyarrow calls a damaged page, or a size that stands for nothing
    with library_errors(f"{path}: cannot be read as Parquet", way_out, ()), pq.ParquetFile(path, **options) as file:
        yield file


@contextmanager
def master_writer(path: str | Path) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A function that writes batches of `batches` to a Parquet file, which is whole or absent."""
    with atomic_open(path, "wb") as handle, pq.ParquetWriter(handle, SCHEMA, compression="zstd") as writer:
        yield writer.write_batch


def batches(studies: Iterable[Study]) -> Iterator[pa.RecordBatch]:
    """The rows of these studies, `ROWS` at a time."""
    left = iter(studies)
    while part := [_row(study) for study in islice(left, ROWS)]:
        yield pa.RecordBatch.from_pylist(part, schema=SCHEMA)


def _row(study: Study) -> dict[str, Any]:
    row = study.to_dict()
    for name, half in _PAIRS.items():
        if name in row:
            row[name] = [{"finding": finding, half: value} for finding, value in row[name].items()]
    row["extra"] = json.dumps(dict(study.extra), ensure_ascii=False) if study.extra else None
    return row


def read_batches(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of a Parquet file, counted from 1.

    Raises:
        ValueError: it is no Parquet, or damaged.
    """
    first = 1
    with open_parquet(path, pre_buffer=False) as file:
        rows = file.iter_batches(ROWS)
        while True:
            with library_errors(f"{path}: cannot be read as Parquet from row {first} on", "write it again", ()):
                batch = next(rows, None)
                if batch is None:
                    return
                batch.validate(full=True)  # texts that are none, which would show in another process
            yield first, batch
            first += len(batch)


def iter_parquet(path: str | Path) -> Iterator[tuple[int, Study | ValueError]]:
    """`study.iter_jsonl` of a Parquet file: (row, study), or the error that says why it is none."""
    for first, batch in read_batches(Path(path)):
        for number, values in enumerate(batch.to_pylist(), start=first):
            try:
                yield number, Study.from_dict(json.loads(json_line(values)))
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"{path}: row {number}: {error}")


def count_rows(path: Path) -> int:
    """Rows that the foot of a Parquet file promises; 0 where it has none that can be read."""
    try:
        with open_parquet(path) as file:
            return file.metadata.num_rows
    except ValueError:
        return 0


def json_line(values: Mapping[str, Any]) -> bytes:
    """The line of a JSONL master file that says the same as a row; a null is a key that is not there.

    Raises:
        ValueError: `extra` is no JSON object, or a value is of a kind that JSON does not have.
    """
    record = {name: value for name, value in values.items() if value is not None}
    for name, half in _PAIRS.items():
        if isinstance(record.get(name), list):
            record[name] = dict(_pair(pair, name, half) for pair in record[name])
    extra = record.pop("extra", None)
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{_named(values)}extra must be a JSON object, got {extra!r:.100}") from error
    if extra is not None:
        if not isinstance(extra, dict) or not FIELDS.isdisjoint(extra):
            raise ValueError(f"{_named(values)}extra must be a JSON object of keys that are no fields of a study")
        record |= extra
    try:
        return json.dumps(record, ensure_ascii=False, default=_plain).encode()
    except TypeError as error:
        raise ValueError(f"{_named(values)}{error}") from error


def _named(values: Mapping[str, Any]) -> str:
    return f"study {values.get('study_id')!r:.100}: "


def _pair(pair: Any, name: str, half: str) -> tuple[Any, Any]:
    """(finding, value) of a struct, or of an entry of a map."""
    if isinstance(pair, tuple) and len(pair) == 2:
        return pair
    if not isinstance(pair, dict) or not isinstance(pair.get("finding"), str):
        raise ValueError(f"{name} are [{{finding, {half}}}] or a map; could not read {pair!r:.100}")
    return pair["finding"], pair.get(half)


def _plain(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a study cannot hold {type(value).__name__}, got {value!r:.100}; leave its column out")
