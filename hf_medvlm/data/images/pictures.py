"""PNG, JPEG, BMP and WebP through Pillow, and the 16 bits of a PNG that Pillow would cut to 8."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from hf_medvlm.data.images.base import check_size, largest, luminance, to_8_bits

PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
Least = Callable[[int, int], tuple[int, int]]
"""(width, height) of a file -> the (width, height) that are enough."""
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
_DEEP_COLOUR = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def is_picture(head: bytes) -> bool:
    """Whether the first bytes are those of one of `PILLOW_FORMATS`."""
    return head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_picture(handle: BinaryIO, least: Least | None = None) -> Image.Image:
    """A picture file as mode "L", upright; what is transparent becomes black.

    Args:
        least: see `open_radiograph`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, below
        opened = Image.open(handle, formats=PILLOW_FORMATS)
    with opened as image:
        check_size(*image.size)
        if image.format == "PNG":
            _check_png(handle)
        if least and image.format == "JPEG" and image.getexif().get(0x0112, 1) == 1:
            image.info["full_size"] = image.size
            image.draft("L", least(*image.size))
        coding = image.tile[0].args if image.tile and image.format == "PNG" else None
        if coding == "LA;16B" or coding in _DEEP_COLOUR:
            grey = _read_deep_png(image, handle, coding)
        else:
            image.load()
            return to_greyscale(image)
        picture = Image.fromarray(grey)
        picture.info["exif"] = image.getexif().tobytes()
        return ImageOps.exif_transpose(picture)


def to_greyscale(image: Image.Image) -> Image.Image:
    """A picture that Pillow has read, of any mode, as `open_radiograph` gives it: mode "L", upright.

    Of colours of 16 bits Pillow has kept the high bytes alone; `open_radiograph` reads the file's low ones too.
    """
    if image.mode.startswith("I"):  # "I;16" or, in older versions of Pillow, "I"
        values = np.asarray(image)
        grey = Image.fromarray(to_8_bits(values, 0, largest(values.max())))
        grey.info["exif"] = image.getexif().tobytes()
        return ImageOps.exif_transpose(grey)
    full = image.info.get("full_size")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    grey = image.convert("L")
    if full:
        grey.info["full_size"] = full
    return grey


_PIECE = 1 << 20


def _check_png(handle: BinaryIO) -> None:
    """Hold the pixels' chunks against their checksums, which Pillow does not: a changed byte would be other pixels.

    Raises:
        ValueError: a checksum that is wrong, or pixels that are cut short.
    """
    place = handle.tell()
    handle.seek(len(SIGNATURES[0]))
    while len(head := handle.read(8)) == 8 and head[4:] != b"IEND":
        left, crc = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
        if head[4:] != b"IDAT":
            handle.seek(left + 4, io.SEEK_CUR)
            continue
        while left and (piece := handle.read(min(left, _PIECE))):
            left, crc = left - len(piece), zlib.crc32(piece, crc)
        stated = handle.read(4)
        if left or len(stated) < 4:  # Pillow fills what little is missing with black
            raise ValueError("the file ends inside its pixels")
        if int.from_bytes(stated, "big") != crc:
            raise ValueError("the checksum of its pixels is wrong")
    handle.seek(place)


def _reopen(handle: BinaryIO) -> ImageFile.ImageFile:
    handle.seek(0)
    return Image.open(handle, formats=["PNG"])


def _read_deep_png(image: ImageFile.ImageFile, handle: BinaryIO, coding: str) -> np.ndarray:
    """Colour, or grey with transparency, of 16 bits: (H, W) of 8 bits, with the range that greyscale of 16 bits gets.

    Pillow keeps the high byte of such pixels alone, which is almost 0 where a 12-bit picture was stored in 16 bits. So
    grey and alpha are read as if their four bytes were four channels, and colour twice: once for the high bytes, once,
    named as little-endian, for the low ones.
    """
    tile = image.tile[0]
    if coding == "LA;16B":
        image._mode = "RGBA"
        image.tile = [tile._replace(args="RGBA")]
        parts = np.asarray(image).astype(np.float64)
        grey, alpha = (256 * parts[..., place] + parts[..., place + 1] for place in (0, 2))
    else:
        with _reopen(handle) as again:
            again.tile = [again.tile[0]._replace(args=_DEEP_COLOUR[coding])]
            low = np.asarray(again).astype(np.float64)
        with _reopen(handle) as again:
            values = 256 * np.asarray(again).astype(np.float64) + low
        image.load()
        grey = luminance(*np.moveaxis(values[..., :3], -1, 0))
        alpha = values[..., 3] if values.shape[-1] == 4 else np.full(grey.shape, 65535.0)
    grey *= alpha / largest(alpha.max())
    return to_8_bits(grey, 0, largest(grey.max()))
