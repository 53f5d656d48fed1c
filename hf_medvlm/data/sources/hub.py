"""Rows of a `datasets` data set, from the Hub or a local folder; images inside it are exported once as files."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.data.sources.base import require_columns

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_MAGIC = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}


def load_hub(path: str) -> datasets.DatasetDict:
    """The splits of a Hub id, of a folder that `save_to_disk` wrote, or of any folder or Parquet file `datasets` reads.

    Raises:
        ValueError: nothing of that name here or on the Hub; the message says what was tried.
    """
    import datasets

    local = Path(path)
    try:
        if local.is_file():
            loaded = datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(local)))
        elif (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        tried = "a folder" if local.is_dir() else "a file, a folder and an id on the Hub"
        raise ValueError(f"{path}: could not be read as a data set (tried {tried}): {error}") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)


def hub_rows(
    path: str, image_column: str, image_folder: str | Path | None, cache_folder: str | Path | None
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (name of the split, row number from 1, row); an embedded image becomes the path of its exported file.

    Where the data set has several splits, a row without a column `split` gets its split's name there. An image that
    `datasets` knows by a path inside `image_folder` stays where it is. One image at a time is in memory.

    Raises:
        ValueError: no such data set or column; there are embedded images and no `cache_folder`.
    """
    import datasets
    from tqdm import tqdm

    splits = load_hub(path)
    for name, table in splits.items():
        require_columns(f"{path}, split {name!r}", table.column_names, [image_column])
        if isinstance(table.features[image_column], datasets.Image):
            if cache_folder is None:
                raise ValueError(f"{path}: its images lie inside the data set; name a cache folder to export them to")
            table = table.cast_column(image_column, datasets.Image(decode=False))
        own = {"split": name} if len(splits) > 1 else {}
        for number, row in enumerate(tqdm(table, desc=f"Reading {name}", unit="row"), start=1):
            if isinstance(row[image_column], dict):
                row[image_column] = _image_path(row[image_column], image_folder, cache_folder)
            yield f"{path}[{name}]", number, own | row


def _image_path(image: dict[str, Any], image_folder: str | Path | None, cache_folder: str | Path | None) -> str:
    """The path under which the image is found later: relative to `image_folder`, or to `cache_folder` if exported."""
    path, content = image.get("path"), image.get("bytes")
    if content is None and path and image_folder and Path(path).is_relative_to(Path(image_folder).absolute()):
        return Path(path).relative_to(Path(image_folder).absolute()).as_posix()
    if content is None:
        content = Path(path).read_bytes() if path and Path(path).is_file() else b""
    if not content:
        return ""
    if cache_folder is None:
        raise ValueError("the images lie inside the data set; name a cache folder to export them to")
    return export_image(content, cache_folder)


def export_image(content: bytes, folder: str | Path) -> str:
    """Write an encoded image under a name made from its bytes, unless it is there; return the name.

    PNG and JPEG are written as they are, so nothing is lost; other formats become PNG. Bytes that no decoder knows are
    written too, so that the check of the images can count and name them.
    """
    suffix = next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "")
    name = hashlib.sha256(content).hexdigest()[:24]
    if not suffix:
        from PIL import Image, UnidentifiedImageError

        suffix, encoded = ".png", io.BytesIO()
        try:
            Image.open(io.BytesIO(content)).save(encoded, format="PNG")
            content = encoded.getvalue()
        except (UnidentifiedImageError, OSError) as error:
            logger.warning("an image of %d bytes could not be decoded: %s", len(content), error)
    target = Path(folder) / (name + suffix)
    if not target.exists():
        with atomic_open(target, "wb") as handle:
            handle.write(content)
    return target.name
