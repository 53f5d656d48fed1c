"""What an image processor does to the shape of a radiograph, done on one channel of 8 bits, and proven against it.

`Preparation.of(processor)` reads the processor's settings, and then asks the processor itself: only where all test
pictures come out equal to the bit is this short way taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.data.images.augment import MARGIN

SPARE = 1.25
"""A decoder must give so many times the pixels asked for: with none to spare the resampling filter lacks its input."""
_known: dict[str, Preparation | None] = {}


@dataclass(frozen=True)
class Preparation:
    """Resize, then crop the middle, then look each grey value up.

    Args:
        size: (height, width), or the shorter side alone.
        crop: (height, width) of the middle that is cut out; None where all is kept.
        rounds: how half of an odd margin is rounded.
        stretch: the darkest and brightest pixel become 0 and 255 first (BioViL-T); the picture is then decoded whole.
        table: (3, 256) float32, the pixel value of each grey level in each channel.
    """

    size: tuple[int, int] | int
    resample: int
    crop: tuple[int, int] | None
    rounds: Literal["down", "even"]
    stretch: bool
    table: np.ndarray

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> Preparation | None:
        """The processor's preparation, or None where it does something else."""
        key = f"{type(processor).__name__} {json.dumps(processor.to_dict(), sort_keys=True, default=str)}"
        if key not in _known:
            _known[key] = next((way for way in _candidates(processor) if _agrees(way, processor)), None)
        return _known[key]

    @property
    def key(self) -> str:
        """Names what `resize` makes: pictures kept under it can be used for no other preparation."""
        shape = "x".join(map(str, self.size)) if isinstance(self.size, tuple) else f"shorter{self.size}"
        return f"{shape}-{Image.Resampling(self.resample).name.lower()}{'-stretched' * self.stretch}"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture of that size when it has been resized."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        short, long = sorted((width, height))
        new = int(self.size * long / short)
        return (self.size, new) if width <= height else (new, self.size)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a decoder must give of such a picture, so that what it leaves out is hardly seen."""
        if self.stretch:  # the extremes of all pixels count
            return width, height
        across, along = self.resized(width, height)
        return ceil(SPARE * across), ceil(SPARE * along)

    def resize(self, picture: Image.Image) -> Image.Image:
        """A picture of mode "L", of which a decoder may have left out pixels, resized."""
        full = picture.info.get("full_size", picture.size)
        size, times = self.resized(*full), round(full[0] / picture.width)
        if self.stretch:
            low, high = np.asarray(picture).min(), np.asarray(picture).max()
            steps = np.arange(256.0) - float(low)
            picture = picture.point(
                (steps / max(float(high) - float(low), 1) * 255).clip(0, 255).astype(np.uint8).tolist()
            )
        # the last row and column of blocks, made from what is left of the sides, may stand for fewer pixels
        small = picture.resize(size, self.resample, (0, 0, full[0] / times, full[1] / times))
        small.info.pop("full_size", None)  # it is whole now
        return small

    def margin(self) -> int:
        """Pixels that a variation may look past the crop; 0 where there is no crop, and nothing behind it."""
        return ceil(MARGIN * max(self.crop)) if self.crop else 0

    def cut(self, picture: Image.Image, margin: int = 0) -> Image.Image:
        """The middle of a resized picture, and `margin` pixels around it, black where there is none."""
        if self.crop is None:
            return picture
        height, width = self.crop
        spare = picture.width - width, picture.height - height
        left, top = (round(each / 2) if self.rounds == "even" else each // 2 for each in spare)
        return picture.crop((left - margin, top - margin, left + width + margin, top + height + margin))


def _candidates(processor: Any) -> list[Preparation]:
    """What the settings may mean."""
    if isinstance(getattr(processor, "resize_size", None), int) and isinstance(processor.crop_size, int):
        crop, table = (processor.crop_size,) * 2, np.tile(np.arange(256, dtype=np.float32) / 255, (3, 1))
        return [Preparation(processor.resize_size, Image.Resampling.BILINEAR, crop, "even", True, table)]
    size, cut = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
    if not getattr(processor, "do_resize", False) or not isinstance(processor.resample, int):
        return []
    if size.get("height") and size.get("width"):
        shape: tuple[int, int] | int = (size["height"], size["width"])
    elif size.get("shortest_edge") and not size.get("longest_edge"):
        shape = size["shortest_edge"]
    else:
        return []
    middle = None
    if getattr(processor, "do_center_crop", False) and cut.get("height") and cut.get("width"):
        middle = (cut["height"], cut["width"])
    if middle is None and isinstance(shape, int):
        return []  # pictures of many shapes make no batch
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    try:
        values = processor(ramp, do_resize=False, do_center_crop=False, return_tensors="np").pixel_values[0]
    except (TypeError, ValueError):
        return []
    if values.shape != (3, 16, 16):
        return []
    table = np.ascontiguousarray(values.reshape(3, 256).astype(np.float32))
    return [Preparation(shape, processor.resample, middle, rounds, False, table) for rounds in ("down", "even")]


def _agrees(way: Preparation, processor: BaseImageProcessor) -> bool:
    """Whether it gives the processor's own pixels, to the bit, of pictures higher, wider and smaller than asked for."""
    rng, side = np.random.default_rng(0), max(way.resized(9, 9))
    for width, height in ((side + 7, 2 * side + 1), (side + 32, side + 5), (side // 2 + 3, side // 2)):
        picture = Image.fromarray(rng.integers(20, 230, (height, width), dtype=np.uint8))
        try:
            theirs = processor([picture.convert("RGB")], return_tensors="np").pixel_values
        except (TypeError, ValueError):
            return False
        ours = way.table[:, np.asarray(way.cut(way.resize(picture)))]
        if np.shape(theirs) != (1, *ours.shape) or not np.array_equal(theirs[0], ours):
            return False
    return True
