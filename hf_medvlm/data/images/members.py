"""Images that lie inside shards: a path that goes on behind a .tar or .parquet file stands for one of them.

`FILE.tar/OFFSET-SIZE/NAME` is so many bytes of an uncompressed tar, `FILE.parquet/GROUP-ROW-COLUMN-ITEM/NAME` a cell of
a row group (of a list of images, one item). So an image is read by its path alone, by any process, without an index.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_medvlm.errors import library_errors

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_SUFFIXES = (".tar", ".parquet")
_MEMBER = re.compile(r"(?i)(.*\.(?:tar|parquet))/(\d+(?:-\d+)+)/(.+)", re.DOTALL)
KEPT_BYTES = 256 << 20
"""Of the row groups read last, so many bytes stay in the memory of a process."""


def member_path(shard: str, place: tuple[int, ...], name: str) -> str:
    """The path of an image inside a shard; `name` loses what a path may not hold."""
    parts = [part[-100:] for part in re.split(r"[/\\]", name.replace("\0", "").replace(":", "_")) if part.strip(". ")]
    return f"{shard}/{'-'.join(map(str, place))}/{'/'.join(parts[-6:]) or 'image'}"


def shard_of(path: str | Path) -> str | None:
    """The shard that a path leads into; None for the path of a plain file."""
    match = _MEMBER.fullmatch(PurePosixPath(path).as_posix())
    return match[1] if match else None


def stat_image(path: str | Path) -> os.stat_result:
    """`os.stat` of an image file, or of the shard that holds it.

    Raises:
        OSError: there is none.
    """
    try:
        return os.stat(path)
    except NotADirectoryError:
        return os.stat(shard_of(path) or path)


def open_member(path: str | Path) -> BinaryIO | None:
    """The encoded image of a path into a shard; None where the path leads into none.

    Raises:
        ValueError: the shard has no such place, or no bytes there.
        OSError: there is no such shard, or it cannot be read.
    """
    match = _MEMBER.fullmatch(PurePosixPath(path).as_posix())
    if match is None or not os.path.isfile(match[1]):
        return None
    shard, place = match[1], tuple(map(int, match[2].split("-")))
    content = _of_tar(shard, place) if shard.lower().endswith(".tar") else _of_parquet(shard, place)
    if not content:
        raise ValueError("the shard holds no bytes there; if it has been written anew, start again")
    return io.BytesIO(content)


def _of_tar(shard: str, place: tuple[int, ...]) -> bytes:
    with open(shard, "rb") as handle:
        offset, size = place if len(place) == 2 else (0, 0)
        if offset + size > os.fstat(handle.fileno()).st_size:
            return b""
        handle.seek(offset)
        return handle.read(size)


def _of_parquet(shard: str, place: tuple[int, ...]) -> bytes | None:
    if len(place) != 4:
        return None
    group, row, column, item = place
    cells = _groups.column(shard, group, column)
    value: Any = cells[row].as_py() if cells is not None and row < len(cells) else None
    if isinstance(value, list):
        value = value[item] if item < len(value) else None
    return value.get("bytes") if isinstance(value, Mapping) else value


class _RowGroups:
    """The columns of images of the row groups that were read last; safe in threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int, int], pa.ChunkedArray | None] = OrderedDict()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def column(self, shard: str, group: int, column: int) -> pa.ChunkedArray | None:
        """One column of a row group; None where the file has no such place."""
        with self._lock:
            key = (shard, os.stat(shard).st_mtime_ns, group, column)
            if key not in self._kept:
                self._kept[key] = _read_column(shard, group, column)
                while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values() if each) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


def _read_column(shard: str, group: int, column: int) -> pa.ChunkedArray | None:
    import pyarrow.parquet as pq

    with library_errors("not a whole Parquet file", "write it again", (FileNotFoundError, PermissionError)):
        with pq.ParquetFile(shard) as file:
            if group >= file.num_row_groups or column >= len(file.schema_arrow):
                return None
            return file.read_row_group(group, columns=[file.schema_arrow.field(column).name]).column(0)


_groups = _RowGroups()
