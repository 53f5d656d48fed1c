"""Prepared pictures: decoded, shrunk, 8 bits, memory-mapped from disk, shared by all runs and processes.

A cache folder holds one folder for each way of shrinking, and in it shards (Arrow files of up to `SHARD` pictures) and
`index.arrow`, which says where the picture of a path lies and of which file, by size and time of change, it was made.
What is not in it, or of a file that has changed, or damaged, is read from the image file itself: a cache changes how
long a picture takes, never which one it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from hf_medvlm.data.files import short_hash
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.verification import READING

logger = logging.getLogger(__name__)
BATCH = 64
INDEX = "index.arrow"
PICTURES = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("time", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("checksum", pa.uint32()),
        ("pixels", pa.large_binary()),
    ]
)
PLACES = pa.schema(
    [
        ("hash", pa.uint64()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("time", pa.int64()),
        ("shard", pa.uint32()),
        ("row", pa.uint32()),
    ]
)


class Shrinking(Protocol):
    """How a picture is made small; `hf_medvlm.collators.geometry.Preparation` is one."""

    @property
    def key(self) -> str:
        """Names it: the same key, the same pictures."""

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the small picture of one of that size."""

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a decoder must give of such a picture."""

    def resize(self, picture: Image.Image) -> Image.Image:
        """The small picture of a decoded one."""


@dataclass(frozen=True)
class LongestSide:
    """At most `size` pixels on the longer side, the aspect kept, nothing enlarged; for any model that looks at less."""

    size: int

    @property
    def key(self) -> str:
        return f"longest{self.size}-lanczos"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture of that size when it has been shrunk."""
        times = min(1.0, self.size / max(width, height))
        return max(1, round(width * times)), max(1, round(height * times))

    def enough(self, width: int, height: int) -> tuple[int, int]:
        across, along = self.resized(width, height)
        return 2 * across, 2 * along

    def resize(self, picture: Image.Image) -> Image.Image:
        full = picture.info.get("full_size", picture.size)
        times = round(full[0] / picture.width)
        box = (0, 0, full[0] / times, full[1] / times)
        small = picture.resize(self.resized(*full), Image.Resampling.LANCZOS, box)
        small.info.pop("full_size", None)  # it may be resized once more, by whoever takes it for what it is
        return small


@dataclass(frozen=True)
class Again:
    """Pictures of `how`, made from the larger ones of another cache and not from the files."""

    how: Shrinking
    source: ImageCache

    @property
    def key(self) -> str:
        return f"{self.how.key}-of-{self.source.how.key}"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.how.resized(*self.source.how.resized(width, height))

    def enough(self, width: int, height: int) -> tuple[int, int]:
        return self.how.enough(width, height)

    def resize(self, picture: Image.Image) -> Image.Image:
        return self.how.resize(picture)


def make_picture(folder: Path, path: str, how: Shrinking) -> Image.Image:
    """The picture of a file that no cache holds.

    Raises:
        ValueError: the file cannot be read.
    """
    if isinstance(how, Again):
        return how.resize(how.source[path])
    return how.resize(open_radiograph(folder / path, how.enough))


def general_cache(cache: str | Path, folder: str | Path) -> LongestSide | None:
    """The largest pictures of `LongestSide` that a cache holds of an image folder, None where it holds none."""
    sizes = [
        int(path.name.split("-")[0].removeprefix("longest"))
        for path in Path(cache).glob(f"longest*-lanczos-{_of(folder)}")
        if (path / INDEX).is_file()
    ]
    return LongestSide(max(sizes)) if sizes else None


def pictures_folder(cache: str | Path, folder: str | Path, how: Shrinking) -> Path:
    """Where the shards of these pictures lie."""
    return Path(cache) / f"{how.key}-{_of(folder)}"


def _of(folder: str | Path) -> str:
    return short_hash(f"{Path(folder).resolve()} reading {READING}")


class ImageCache(Mapping[str, Image.Image]):
    """Path -> prepared picture, mode "L"; a collator's `image_folder`, which stands for the folder of the files too.

    Args:
        cache: the cache folder.
        folder: of the image files.
        how: of the pictures.

    Each picture has the key of its `how` in `info["prepared"]`. Workers and processes map the same files.
    """

    def __init__(self, cache: str | Path, folder: str | Path, how: Shrinking) -> None:
        self.pictures, self.folder, self.how = pictures_folder(cache, folder, how), Path(folder), how
        self._places: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._names: list[str] = []
        self._shards: dict[int, pa.Table | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": None, "_names": [], "_shards": {}}

    def __fspath__(self) -> str:
        return str(self.folder)

    __str__ = __fspath__

    def __getitem__(self, path: str) -> Image.Image:
        picture = self.stored(path)
        if picture is None:
            picture = make_picture(self.folder, path, self.how)
        picture.info["prepared"] = (self.how.how if isinstance(self.how, Again) else self.how).key
        return picture

    def stored(self, path: str) -> Image.Image | None:
        """The picture of the cache, None where it holds none or a damaged one."""
        if self._places is None:
            index = read_index(self.pictures)
            self._places = tuple(index[name].combine_chunks().to_numpy() for name in ("hash", "shard", "row"))
            self._names = shard_names(index)
        hashes, shards, rows = self._places
        wanted = path_hash(path)
        at = int(np.searchsorted(hashes, np.uint64(wanted)))
        if at == len(hashes) or int(hashes[at]) != wanted:
            return None
        number = int(shards[at])
        if number not in self._shards:
            self._shards[number] = open_arrow(self.pictures / self._names[number])
        table = self._shards[number]
        return None if table is None else _picture(table, int(rows[at]), path)

    def __iter__(self) -> Iterator[str]:
        return iter(read_index(self.pictures)["path"].to_pylist())

    def __len__(self) -> int:
        return len(read_index(self.pictures))


def path_hash(path: str) -> int:
    """64 bits that stand for a path; the shard has the whole path beside the picture."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")


def _picture(table: pa.Table, row: int, path: str) -> Image.Image | None:
    """The picture of one row, None where it is another file's or its bytes have changed."""
    batch, place = divmod(row, BATCH)
    pixels = table["pixels"].chunk(batch)[place].as_buffer()
    whole = zlib.crc32(pixels) == table["checksum"].chunk(batch)[place].as_py()
    if not whole or table["path"].chunk(batch)[place].as_py() != path:
        logger.warning("the cached picture of %s is damaged; the file is read", path)
        return None
    size = (table["width"].chunk(batch)[place].as_py(), table["height"].chunk(batch)[place].as_py())
    return Image.frombuffer("L", size, pixels, "raw", "L", 0, 1)


def open_arrow(path: Path) -> pa.Table | None:
    """A memory-mapped Arrow file, None (and a warning) where it is missing or cut short. Holds no open file."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be read (%s); its pictures are made anew", path, error)
        return None


def read_index(pictures: Path) -> pa.Table:
    """`PLACES` of all pictures, sorted by hash; empty where there is no index."""
    table = open_arrow(pictures / INDEX) if (pictures / INDEX).is_file() else None
    return PLACES.empty_table() if table is None else table


def shard_names(index: pa.Table) -> list[str]:
    return json.loads((index.schema.metadata or {}).get(b"shards", b"[]"))
