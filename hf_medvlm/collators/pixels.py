"""Images of rows -> pixel values: read small, shrink in one channel, vary (in training only), normalise last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.collators.augmentation import PIXELS, TABLE, VARIATION, as_tensor
from hf_medvlm.collators.geometry import Preparation
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.images.augment import Variation
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import StudyImage

ImageFolder = str | Path | Mapping[str, Image]
"""What the images' paths are relative to; or path -> the picture itself, mode "L"."""
_unfinished = [False]


@contextmanager
def unfinished() -> Iterator[None]:
    """Inside, `read_pixels` leaves variation and normalisation to `augmentation.finish_batch`, on another device."""
    before, _unfinished[0] = _unfinished[0], True
    try:
        yield
    finally:
        _unfinished[0] = before


class Unfinished:
    """A collator whose pixel values are 8-bit pictures, to be finished where the model is. Can be sent to workers."""

    def __init__(self, collate: Callable[[list[Row]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Row]) -> Any:
        with unfinished():
            return self.collate(rows)


def read_pixels(
    images: Sequence[tuple[Row, StudyImage | None]],
    image_folder: ImageFolder,
    image_processor: BaseImageProcessor,
    training: bool,
    seed: int,
) -> dict[str, Tensor]:
    """`pixel_values` (B, 3, H, W) of one image a row; inside `unfinished`, what `finish_batch` makes them of.

    SigLIP 2 (NaFlex) has its `pixel_attention_mask` and `spatial_shapes` beside them.

    They are those of the image processor, to the bit, but for two things. A JPEG more than 2.5 times the processor's
    size is decoded at 1/2, 1/4 or 1/8: of radiographs, 99 of 100 pixels then differ by 8 grey levels or less, and by 1
    or less on average. And in training the picture is varied: the variation of a row is a function of `seed`, its
    study and its epoch alone.

    Raises:
        ValueError: a study has no image, or one that cannot be read; the message names the study and the file.
    """
    way = Preparation.of(image_processor)
    pictures = [open_image(row, image, image_folder, way) for row, image in images]
    drawn = [Variation.draw(row.rng(seed)) for row, _ in images] if training else []
    if way is None:
        varied = [one.apply(picture) for one, picture in zip(drawn, pictures, strict=True)] if training else pictures
        return dict(image_processor([_rgb(picture) for picture in varied], return_tensors="pt"))
    margin = way.margin() if training else 0
    cut = [way.cut(picture, margin) for picture in pictures]
    if _unfinished[0]:
        grey = torch.from_numpy(np.stack([np.asarray(picture) for picture in cut]))[:, None]
        batch = {PIXELS: grey, f"{PIXELS}{TABLE}": torch.from_numpy(way.table)}
        return batch | ({f"{PIXELS}{VARIATION}": as_tensor(drawn, margin)} if training else {})
    arrays = [one.apply(picture, margin) for one, picture in zip(drawn, cut, strict=True)] if training else cut
    return {PIXELS: torch.from_numpy(look_up([np.asarray(array) for array in arrays], way.table))}


def open_image(row: Row, image: StudyImage | None, folder: ImageFolder, way: Preparation | None) -> Image:
    """The image of a row, mode "L", resized where there is a `way`.

    Raises:
        ValueError: the study has no image, or one that cannot be read; the message names the study and the file.
    """
    if image is None:
        raise ValueError(f"study {row.study.study_id!r:.100} has no image; leave it out of the data set")
    if isinstance(folder, Mapping):
        picture = folder[image.path]
    else:
        picture = open_radiograph(Path(folder) / image.path, way.enough if way else None)
    return picture if way is None or picture.info.get("prepared") == way.key else way.resize(picture)


def look_up(pictures: Sequence[np.ndarray], table: np.ndarray) -> np.ndarray:
    """uint8 (H, W) each -> float32 (B, 3, H, W) by a table (3, 256)."""
    out = np.empty((len(pictures), 3, *pictures[0].shape), np.float32)
    for picture, pixels in zip(pictures, out, strict=True):
        for channel in range(3):
            np.take(table[channel], picture, out=pixels[channel], mode="clip")
    return out


def _rgb(picture: Image | np.ndarray) -> Image:
    return (fromarray(picture) if isinstance(picture, np.ndarray) else picture).convert("RGB")
