"""Shards (`--dataset 'shards/*.tar'`, `'shards/*.parquet'`) -> studies whose images stay inside the shards.

A tar is read as WebDataset writes it: the files of a sample stand one after the other and share the name before the
first dot. `.txt` is its text, `.json` a row of a table or the object of a master file, and the images are its images. A
Parquet file is a table with a column of images. Headers and texts are read once; what was found is kept as a master
file in `cache_folder()` for as long as the shards stay as they are.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.fields import SPLIT_NAMES
from hf_medvlm.data.files import cache_folder, check_regular, load_json, machine_lock, read_json, write_json
from hf_medvlm.data.images.members import SHARD_SUFFIXES, member_path
from hf_medvlm.data.parquet import open_parquet
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, link_priors
from hf_medvlm.data.sources.cells import IMAGE_SUFFIXES
from hf_medvlm.data.sources.columns import NAMES, plain_name
from hf_medvlm.data.sources.table import studies_of_rows
from hf_medvlm.data.study import Study, write_jsonl

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

READING = 1
"""Raised by whoever changes what is made of a sample."""
Entry = tuple[str, int, dict[str, Any]]
Named = tuple[str | None, str | None, str | None, str | None]


def is_shards(dataset: str) -> bool:
    """Whether `--dataset` means shards: a pattern of .tar or .parquet files, or one .tar file."""
    pattern = glob.has_magic(dataset) and not Path(dataset).exists()
    return dataset.lower().endswith(SHARD_SUFFIXES if pattern else ".tar") and "://" not in dataset


def shard_files(pattern: str) -> tuple[Path, list[str]]:
    """The folder of the shards that fit a pattern, and their paths in it, in the order of their names.

    Raises:
        ValueError: none fits, or one is no regular file.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else [Path(path) for path in glob.glob(pattern, recursive=True)]
    if not paths:
        raise ValueError(f"--dataset {pattern}: no file fits this pattern; * stands for any part of a name")
    for path in paths:
        check_regular(path)
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return folder, sorted(path.absolute().relative_to(folder).as_posix() for path in paths)


def load_shards(
    pattern: str,
    named: Named = (None, None, None, None),
    held_out: bool = False,
) -> tuple[Path, Corpus]:
    """The master file of the shards that fit a pattern, made where there is none yet, and what else was found.

    Args:
        named: `--image_column`, `--text_columns`, `--patient_column`, `--split_column`.
        held_out: nothing is trained, so that no sample need be marked as training.

    Raises:
        ValueError: no shard, a broken one, or anything that `load_table` refuses.
    """
    folder, names = shard_files(pattern)
    stats = [os.stat(folder / name) for name in names]
    facts = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
    key = json.dumps([READING, str(folder), facts, named, held_out])
    kept = cache_folder() / "shards" / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    with machine_lock(str(kept)):
        if not (kept / "found.json").is_file():
            _index(pattern, folder, names, named, held_out, kept)
        record = load_json(kept / "found.json", dict)
    rejected = [Rejected(**entry) for entry in record["rejected"]]
    corpus = Corpus(image_folder=folder, notes=record["notes"], patients_known=record["patients_known"])
    corpus.rejected = rejected
    return kept / "master.jsonl", corpus


def _index(pattern: str, folder: Path, names: Sequence[str], named: Named, held_out: bool, kept: Path) -> None:
    """Read headers and texts of all shards and write them down, `found.json` last."""
    from tqdm import tqdm

    rejected: list[Rejected] = []
    entries: list[Entry] = []
    ids: set[str] = set()
    for name in tqdm(names, desc="Reading shards", unit="shard", disable=None):
        read = _tar_rows if name.lower().endswith(".tar") else _parquet_rows
        entries += _told_apart(read(folder, name, rejected), name, ids)
    if not entries:
        raise ValueError(f"{pattern}: no sample in it" + (f"; the first left out: {rejected[0]}" if rejected else ""))
    first = entries[0][2]
    if {"study_id", "patient_id"} <= first.keys() and isinstance(first.get("images"), list) and "image" in first:
        corpus = _studies_of_objects(entries, rejected)
        if not corpus.studies:
            raise ValueError(f"{pattern}: none of {len(rejected)} samples can be used; the first: {rejected[0]}")
    else:
        _split_by_file(entries)
        corpus = studies_of_rows(pattern, entries, rejected, [], *named, None, folder, None, held_out)
    kept.mkdir(parents=True, exist_ok=True)
    count = write_jsonl(link_priors(corpus.studies, corpus.linked), kept / "master.jsonl")
    note = f"{count} studies in {len(names)} shards; their headers and texts are indexed, their images stay inside"
    record = {"notes": [note, *corpus.notes], "patients_known": corpus.patients_known}
    write_json(kept / "found.json", record | {"rejected": [asdict(entry) for entry in corpus.rejected]})


def _tar_rows(folder: Path, name: str, rejected: list[Rejected]) -> Iterator[Entry]:
    """The samples of a tar as rows: `image` holds the paths of the images, `text` what a .txt says."""
    path = folder / name
    try:
        with tarfile.open(path, "r:") as tar:
            for number, (key, members) in enumerate(groupby(_members(tar), itemgetter(0)), start=1):
                sample = [(suffix, member, content) for _, suffix, member, content in members]
                images = [
                    member_path(name, (member.offset_data, member.size), member.name)
                    for suffix, member, _ in sample
                    if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
                ]
                texts = {suffix: content for suffix, _, content in sample if content is not None}
                try:
                    row = _told(texts, f"{path}, sample {key}")
                except ValueError as error:
                    rejected.append(Rejected(str(path), number, key, "text cannot be read", str(error)))
                    continue
                has_id = any(plain_name(column) in NAMES["study_id"] for column in row)
                yield str(path), number, ({} if has_id else {"study_id": key}) | row | {"image": images}
            with open(path, "rb") as handle:
                handle.seek(tar.offset)
                if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"it breaks off at byte {tar.offset:,}")
    except (tarfile.TarError, EOFError, OSError) as error:
        hint = "; a packed file cannot be read at any place: unpack it" if _is_packed(path) else ""
        raise ValueError(f"{path}: no whole tar file ({error}){hint}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes | None]]:
    """(name before the first dot, what stands behind it, member, content of a .txt or .json) of each file in a tar."""
    for member in iter(tar.next, None):
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
        place, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if not member.isreg() or member.issparse() or not stem:  # no file, or what a Mac writes beside one
            continue
        handle = tar.extractfile(member) if suffix.lower() in ("txt", "json") else None
        yield f"{place}/{stem}".strip("./"), suffix.lower(), member, handle.read() if handle else None


def _told(texts: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The row that the .txt and the .json of a sample make."""
    row: dict[str, Any] = {}
    for suffix, content in sorted(texts.items(), reverse=True):  # .txt first: a text of the JSON wins
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}.{suffix}: not UTF-8 ({error})") from error
        fields = {"text": text} if suffix == "txt" else read_json(text, f"{where}.{suffix}")
        if not isinstance(fields, dict):
            raise ValueError(f"{where}.{suffix}: an object is wanted, not {type(fields).__name__}")
        row |= fields
    return row


def _is_packed(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _parquet_rows(folder: Path, name: str, rejected: list[Rejected]) -> Iterator[Entry]:
    """The rows of a Parquet file; a cell of images holds the paths of those that are there."""
    path, number = folder / name, 0
    with open_parquet(path) as file:
        schema = file.schema_arrow
        images = {place: field for place, field in enumerate(schema) if _holds_images(field.type)}
        others = [field.name for place, field in enumerate(schema) if place not in images]
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group, columns=others).to_pylist() if others else [{} for _ in range(count)]
            for place, field in images.items():
                for row, cell in enumerate(_image_cells(file, group, field)):
                    rows[row][field.name] = [
                        member_path(name, (group, row, place, item), image) for item, image in cell
                    ]
            for row in rows:
                number += 1
                has_id = any(plain_name(column) in NAMES["study_id"] for column in row)
                yield str(path), number, ({} if has_id else {"study_id": f"{Path(name).stem}-{number}"}) | row


def _image_cells(file: pq.ParquetFile, group: int, field: pa.Field) -> Iterator[list[tuple[int, str]]]:
    """(place in the cell, name) of the images of each row of a group; pixels are read only where some are missing."""
    leaves = {}
    metadata = file.metadata.row_group(group)
    for place in range(metadata.num_columns):
        leaf = metadata.column(place)
        if leaf.path_in_schema.split(".")[0] == field.name:
            leaves[leaf.path_in_schema.split(".")[-1]] = leaf
    pixels = leaves.get("bytes") or next(iter(leaves.values()))
    complete = pixels.statistics is not None and pixels.statistics.has_null_count and not pixels.statistics.null_count
    if complete and len(leaves) == 1 and not _is_list(field.type):
        yield from ([(0, "image")] for _ in range(metadata.num_rows))
        return
    column = leaves["path"].path_in_schema if complete and "path" in leaves else field.name
    for cell in file.read_row_group(group, columns=[column]).column(0):
        items = [cell] if not _is_list(field.type) else cell.values if cell.is_valid else []
        names = []
        for number, item in enumerate(items):
            parts = item if hasattr(item, "keys") else {"bytes": item}
            if item.is_valid and (complete or parts["bytes"].is_valid):
                named = "path" in parts and parts["path"].is_valid
                names.append((number, parts["path"].as_py() if named else "image"))
        yield names


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as is_type

    return is_type.is_list(kind) or is_type.is_large_list(kind)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a column is of bytes, of what `datasets` calls an image, or of lists of either."""
    import pyarrow.types as is_type

    if _is_list(kind):
        return _holds_images(kind.value_type)
    if is_type.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return is_type.is_binary(kind) or is_type.is_large_binary(kind)


def _told_apart(entries: Iterable[Entry], shard: str, ids: set[str]) -> Iterator[Entry]:
    """Samples of one name in two shards are two samples; ids that a column gives are left alone."""
    for file, number, row in entries:
        if "image" in row and str(row.get("study_id")) in ids and "patient_id" not in row:
            row["study_id"] = f"{Path(shard).stem}/{row['study_id']}"
        ids.add(str(row.get("study_id")))
        yield file, number, row


def _split_by_file(entries: Sequence[Entry]) -> None:
    """Where no sample names its split, the names of the shards do, if one of them says train, validate or test."""
    if any(plain_name(name) in NAMES["split"] for _, _, row in entries[:100] for name in row):
        return
    by_file: dict[str, str | None] = {}
    for file, _, _ in entries:
        if file not in by_file:
            words = re.split(r"[^a-z]+", Path(file).stem.lower())
            by_file[file] = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
    if any(by_file.values()):
        for file, _, row in entries:
            row["split"] = by_file[file] or "train"


def _studies_of_objects(entries: Iterable[Entry], rejected: list[Rejected]) -> Corpus:
    """The studies of samples whose JSON is that of a master file; the views stand in the order of the images."""
    corpus = Corpus(rejected=rejected)
    for file, number, row in entries:
        paths = row.pop("image", [])
        row.pop("text", None)
        try:
            told = row.get("images") or []
            if len(told) != len(paths):
                raise EntryError("other images", f"the JSON names {len(told)}, the sample holds {len(paths)}")
            images = [{"path": path, "view": image.get("view")} for path, image in zip(paths, told, strict=True)]
            study = Study.from_dict(row | {"images": images})
            if study.study_id in corpus.places:
                raise EntryError("duplicate study_id", f"it stands already in {corpus.places[study.study_id][0]}")
            corpus.add(study, file, number)
        except EntryError as error:
            rejected.append(Rejected(file, number, str(row.get("study_id")), error.reason, error.detail))
        except (ValueError, AttributeError) as error:
            rejected.append(Rejected(file, number, str(row.get("study_id")), "no study", str(error)))
    return corpus
