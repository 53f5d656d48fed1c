"""Rows of a `datasets` data set, from the Hub or a local folder; images inside it are exported once as files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.sources.base import EntryError
from hf_medvlm.errors import library_errors

if TYPE_CHECKING:
    import datasets

AS_IT_CAME = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
"""What files begin with that are exported byte for byte, so that nothing is lost; DICOM is known by its 129th byte."""


def load_hub(path: str) -> datasets.DatasetDict:
    """The splits of a Hub id, of a folder that `save_to_disk` wrote, or of any folder or Parquet file `datasets` reads.

    Raises:
        ValueError: nothing of that name here or on the Hub; the message says what was tried.
    """
    import datasets

    local = Path(path)
    _refuse_special(local)
    try:
        if local.is_file():
            loaded = datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(local)))
        elif (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path)
    except Exception as error:  # pyarrow, fsspec and the Hub's client raise any kind of error on files of others
        tried = "a folder" if local.is_dir() else "a file, a folder and an id on the Hub"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: could not be read as a data set (tried {tried}): {reason:.300}") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)


def _refuse_special(folder: Path) -> None:
    """Raise `ValueError` where a pipe or a device lies in a folder: whoever reads it would wait for ever."""
    for parent, _, _ in os.walk(folder):
        with os.scandir(parent) as entries:
            for entry in entries:
                if not entry.is_file() and not entry.is_dir() and os.path.exists(entry):
                    raise ValueError(f"{entry.path}: cannot be read: it is no plain file")


def hub_rows(path: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (name of the split, row number from 1, row); images stay encoded, one row at a time is in memory.

    Where the data set has several splits, a row without a column `split` gets its split's name there.

    Raises:
        ValueError: no such data set.
    """
    from tqdm import tqdm

    splits = load_hub(path)
    for name, table in splits.items():
        for column, feature in table.features.items():
            table = table.cast_column(column, _undecoded(feature)) if _has_image(feature) else table
        split = {"split": name} if len(splits) > 1 else {}
        with library_errors(f"{path}[{name}]: its rows cannot be read", "save the data set again"):
            for number, row in enumerate(tqdm(table, desc=f"Reading {name}", unit="row"), start=1):
                yield f"{path}[{name}]", number, split | row


def _has_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, (list, tuple)):
        return any(map(_has_image, feature))
    inner = getattr(feature, "feature", None)
    return isinstance(feature, datasets.Image) or (inner is not None and _has_image(inner))


def _undecoded(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = feature[0] if isinstance(feature, (list, tuple)) else feature.feature
    return [_undecoded(inner)]


class EmbeddedImages:
    """Exports the images that lie inside a data set.

    Args:
        path: the data set.
        image_folder: an image that is a file in it stays where it is.
        cache_folder: where the others are written; without it there can be none.
    """

    def __init__(self, path: str, image_folder: str | Path | None, cache_folder: str | Path | None) -> None:
        self.path, self.cache = path, Path(cache_folder) if cache_folder else None
        self.image_folder = Path(image_folder) if image_folder else None
        self.exported = 0

    def find(self, image: Any) -> str:
        """The path of an embedded image: relative to `image_folder`, or to `cache_folder` where it is exported.

        Args:
            image: bytes, or `{"bytes", "path"}` as `datasets` gives it.

        Raises:
            EntryError: no bytes and no path inside the data set, or bytes that are no image we read.
            ValueError: there are embedded images and no cache folder.
        """
        content = image if isinstance(image, bytes) else image.get("bytes")
        name = None if isinstance(image, bytes) else image.get("path")
        if content is None:
            if not isinstance(name, str) or not name:
                raise EntryError("no image", "the image cell is empty")
            return self._inside(name)
        if self.cache is None:
            raise ValueError(f"{self.path}: its images lie inside the data set; name a cache folder to export them to")
        self.exported += 1
        return export_image(content, self.cache)

    def from_data_set(self, name: str) -> bool:
        """Whether a path without bytes is one that `datasets` knows, and not a cell that somebody wrote."""
        return Path(name).is_absolute() or not Path(self.path).is_file()

    def _inside(self, name: str) -> str:
        """A file that the data set names, if it lies in the image folder or in the data set's own."""
        local = Path(self.path)
        place = Path(name) if Path(name).is_absolute() else None
        roots = [root.resolve() for root in (self.image_folder, local if local.is_dir() else None) if root]
        if not local.exists():  # a Hub data set: its files are in the cache that `datasets` fills
            import datasets

            roots += [Path(datasets.config.HF_DATASETS_CACHE).resolve(), _hub_cache()]
        for root in roots:
            file = (place or root / name).resolve()
            if file.is_file() and file.is_relative_to(root):
                if self.image_folder and file.is_relative_to(self.image_folder.resolve()):
                    return file.relative_to(self.image_folder.resolve()).as_posix()
                return self.find(file.read_bytes())
        raise EntryError("path leaves the data set", f"{name!r:.300} is no file in the data set or in the image folder")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).resolve()


def export_image(content: bytes, folder: str | Path) -> str:
    """Write an encoded image under a name made from its bytes, unless it is there; return the name.

    PNG, JPEG and DICOM are written as they are, so nothing is lost; other formats that are read become PNG. All are
    decoded first, by the same bounded reader as files.

    Raises:
        EntryError: bytes that are no image, a broken one, or one of a format or size that is not read.
    """
    suffix = next((suffix for magic, suffix in AS_IT_CAME.items() if content.startswith(magic)), "")
    suffix = ".dcm" if content[128:132] == b"DICM" else suffix
    target = Path(folder) / (hashlib.sha256(content).hexdigest()[:24] + (suffix or ".png"))
    if target.exists():
        return target.name
    try:
        image = open_radiograph(io.BytesIO(content))
    except ValueError as error:
        raise EntryError("image cannot be read", f"embedded, {len(content)} bytes: {error}") from error
    if not suffix:
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        content = encoded.getvalue()
    with atomic_open(target, "wb") as handle:
        handle.write(content)
    return target.name
