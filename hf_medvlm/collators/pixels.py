"""Image of a row -> pixel values: read, augment (in training only), hand to the image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL.Image import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.data.images import augment, open_radiograph
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import StudyImage


def read_pixels(
    images: Sequence[tuple[Row, StudyImage | None]],
    image_folder: str | Path | Mapping[str, Image],
    image_processor: BaseImageProcessor,
    training: bool,
    seed: int,
) -> Tensor:
    """Pixel values (B, 3, H, W) of one image a row.

    The augmentation of a row is a function of `seed`, its study and its epoch alone.

    Args:
        image_folder: what the images' paths are relative to; or path -> the picture itself, mode "L".

    Raises:
        ValueError: a study has no image, or one that cannot be read; the message names the study and the file.
    """
    pictures = []
    for row, image in images:
        if image is None:
            raise ValueError(f"study {row.study.study_id!r} has no image; leave it out of the data set")
        if isinstance(image_folder, Mapping):
            picture = image_folder[image.path]
        else:
            picture = open_radiograph(Path(image_folder) / image.path)
        if training:
            picture = augment(picture, row.rng(seed))
        pictures.append(picture.convert("RGB"))
    return image_processor(pictures, return_tensors="pt").pixel_values
