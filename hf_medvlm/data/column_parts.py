"""Parts of a master file, checked study by study and made columns: what the workers of `column_index` do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from hf_medvlm.data.fields import SECTIONS, id_text
from hf_medvlm.data.parquet import json_line
from hf_medvlm.data.study import Study
from hf_medvlm.labels import SPLITS

TEXT_BITS = {name: 1 << number for number, name in enumerate(SECTIONS)}
CONVERSATION = 1 << len(SECTIONS)
"""Bits of the column `has`: which sections a study has any text of, and whether it has a conversation."""
COLUMNS = pa.schema(
    [
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("study", pa.uint64()),
        ("patient", pa.uint64()),
        ("prior", pa.uint64()),
        ("patient_id", pa.string()),
        ("study_date", pa.string()),
        ("split", pa.int8()),
        ("has", pa.uint16()),
        ("images", pa.list_(pa.string())),
        ("image", pa.list_(pa.uint64())),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("labels", pa.string()),
        ("progression", pa.string()),
    ]
)
"""`study`, `patient`, `prior` and `image` are hashes of ids and paths (null: no prior); `split` is a place in `SPLITS`,
-1 where there is none; `labels` and `progression` are JSON."""
LINE = pa.field("line", pa.large_binary())
"""The JSON of a study, where the master file itself has no lines."""
_LABELS = json.JSONEncoder(ensure_ascii=False).encode


class NotPlain(ValueError):
    """A file that `read_jsonl` must look at: it will say what is wrong with it, or read it."""


def hash64(text: str) -> int:
    """64 bits that stand for an id or a path."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def read_lines(path: str, begin: int, end: int) -> pa.RecordBatch:
    """The columns of these bytes of a JSONL file; `NotPlain` where a line is no study."""
    with open(path, "rb") as handle:
        handle.seek(begin)
        content = handle.read(end - begin)
    rows: list[tuple[Any, ...]] = []
    offset = begin
    for line in content.split(b"\n"):
        length = len(line)
        if line.strip():
            try:
                record = json.loads(line)
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(record, ensure_ascii=False).encode()
                rows.append((offset, length, *_row(record)))
            except (ValueError, RecursionError) as error:
                raise NotPlain(str(error)) from error
        offset += length + 1
    return _batch(rows, COLUMNS)


def read_records(path: str, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The columns of these rows of a Parquet file, of which the first is row `first`.

    Raises:
        ValueError: a row that is no study; the message names the file and the row.
    """
    rows = []
    for number, values in enumerate(batch.to_pylist(), start=first):
        try:
            line = json_line(values)
            rows.append((0, len(line), *_row(json.loads(line)), line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    return _batch(rows, COLUMNS.append(LINE))


def _batch(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [*zip(*rows, strict=True)] or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


_PLAIN_TEXTS = ("findings", "impression", "report", "indication", "source", "licence", "comparison")
_STATES = (1, 0, -1, None)
_RARE: Mapping[str, Any] = {
    "boxes": [],
    "conversations": [],
    "triplets": [],
    "progression": {},
    "answer_type": "",
    "study_date": "",
    "prior_study_id": "",
    "extra": None,
}
"""Keys that few studies have, and what they hold where there is nothing."""


def is_plain(record: Any) -> bool:
    """Whether a record is surely a study, without a closer look: ids, texts, labels and safe image paths alone."""
    if type(record) is not dict or any(record.get(name) not in (None, nothing) for name, nothing in _RARE.items()):
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
    labels, images = record.get("labels", {}), record.get("images", [])
    if type(labels) is not dict or type(images) is not list:
        return False
    for name, state in labels.items():
        if not name or type(state) not in (int, type(None)) or state not in _STATES:
            return False
    for image in images:
        path = image.get("path") if type(image) is dict else None
        view = image.get("view") if path else 0
        if type(path) is not str or not (view is None or type(view) is str) or len(path) > 255:
            return False
        if path[0] in "/ \t\n" or ".." in path or "\\" in path or ":" in path or "\0" in path:
            return False
    return True


_EMPTY: Mapping[str, Any] = {
    "split": None,
    "images": [],
    "findings": "",
    "impression": "",
    "report": "",
    "indication": "",
    "labels": {},
    "source": "",
    "licence": "",
}


def written(record: dict[str, Any], split: str | None) -> dict[str, Any]:
    """`Study.to_dict` of a record of which `is_plain` holds, in this split; the keys stand in another order."""
    values = {**_EMPTY, **record}
    for name in ("conversations", "progression", "answer_type", "comparison"):
        if name in values and not values[name]:
            del values[name]
    if values.get("triplets", 0) is None:
        del values["triplets"]
    images = [{"path": image["path"], "view": image.get("view") or None} for image in values["images"]]
    return values | {"split": split, "images": images, "boxes": [], "prior_study_id": None, "study_date": None}


def _row(record: Any) -> tuple[Any, ...]:
    """The values of `COLUMNS` behind offset and length.

    Raises:
        ValueError: the record is no study.
    """
    prior: str | None = None
    date, progression = "", ""
    if not is_plain(record):
        study = Study.from_dict(record)  # of a rarer shape, or the error that says why it is none
        prior, date = study.prior_study_id, study.study_date or ""
        progression = _LABELS(dict(study.progression)) if study.progression else ""
    patient = id_text(record.get("patient_id"), "patient_id")
    split = record.get("split")
    has = CONVERSATION if record.get("conversations") else 0
    for name, bit in TEXT_BITS.items():
        if (record.get(name) or "").strip():
            has |= bit
    images = [image["path"] for image in record.get("images") or ()]
    labels = record.get("labels")
    return (
        hash64(id_text(record.get("study_id"), "study_id")),
        hash64(patient),
        None if prior is None else hash64(prior),
        patient,
        date,
        SPLITS.index(split) if split else -1,
        has,
        images,
        [hash64(image) for image in images],
        record.get("source") or "",
        record.get("licence") or "",
        _LABELS({name: None if state is None else int(state) for name, state in labels.items()}) if labels else "",
        progression,
    )
