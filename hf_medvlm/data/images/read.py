"""One file -> one picture, or the reason why there is none."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from hf_medvlm.data.images.base import MAX_PIXELS, Refused
from hf_medvlm.data.images.dicom import DICOM_SUFFIXES, read_dicom
from hf_medvlm.data.images.members import open_member, stat_image
from hf_medvlm.data.images.pictures import PILLOW_FORMATS, Least, is_picture, read_picture

_NOT_READ = {  # what other files begin with -> (what they are, whether Pillow can convert them)
    b"GIF8": ("a GIF", True),
    b"II*\x00": ("a TIFF", True),
    b"MM\x00*": ("a TIFF", True),
    b"II+\x00": ("a BigTIFF", False),
    b"\x00\x00\x00\x0cjP": ("a JPEG 2000 picture", True),
    b"\xff\x4f\xff\x51": ("a JPEG 2000 codestream", True),
    b"%PDF": ("a PDF", False),
}


def open_radiograph(path: str | Path | BinaryIO, least: Least | None = None) -> Image.Image:
    """Read a PNG, JPEG, BMP, WebP or DICOM file as a PIL image of mode "L".

    DICOM is known by its content or its suffix. Of several frames the first is taken. Colour becomes luminance, what is
    transparent becomes black, and an EXIF orientation is obeyed. A path may lead into a shard (`members.py`).

    Args:
        path: a file, or an open binary file such as `io.BytesIO` of bytes that a table holds.
        least: (width, height) of the file -> (width, height) that are enough: a JPEG is then decoded at the smallest
            of 1/8, 1/4, 1/2 and 1 that gives no less, with the file's size in `info["full_size"]`. Other files, and
            turned ones, come as they are.

    Raises:
        ValueError: the file is missing, empty, no regular file, not an image, cut short, larger than `MAX_PIXELS`, or
            compressed in a way that no installed decoder reads. The message names the file and the reason.
    """
    try:
        return _read(path, least)
    except ValueError as error:
        name = path if isinstance(path, (str, Path)) else getattr(path, "name", "these bytes")
        raise ValueError(f"{name}: {error}") from error


ONE_GREY = "every pixel has the same grey value"
"""How the reason begins for a picture that can be read and shows nothing."""


def one_grey(image: Image.Image) -> str | None:
    """The reason to leave out a picture of mode "L" that has one grey value; None where it has several."""
    low, high = image.getextrema()
    return f"{ONE_GREY}, {low} of 255" if low == high else None


def why_unusable(path: Path) -> str | None:
    """Why this file cannot be read, or shows nothing; None where it can be trained on."""
    try:
        return one_grey(_read(path))
    except ValueError as error:
        return str(error)


def _read(path: str | Path | BinaryIO, least: Least | None = None) -> Image.Image:
    """The picture, or `ValueError` with the bare reason."""
    if not isinstance(path, (str, Path)):
        return _decode(path, "", least)
    try:
        mode = stat_image(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe or a device may never end
            raise ValueError("it cannot be opened: it is a pipe, socket or device and no regular file")
        with open_member(path) or open(path, "rb") as handle:
            return _decode(handle, Path(path).suffix.lower(), least)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except OSError as error:
        raise ValueError(f"it cannot be opened: {error.strerror}") from error


def _decode(handle: BinaryIO, suffix: str, least: Least | None) -> Image.Image:
    head = handle.read(132)
    handle.seek(0)
    if not head:
        raise ValueError("the file is empty (zero bytes)")
    is_dicom = head[128:] == b"DICM" or (suffix in DICOM_SUFFIXES and not is_picture(head))
    try:
        return read_dicom(handle) if is_dicom else read_picture(handle, least)
    except Image.UnidentifiedImageError as error:
        raise ValueError(_way_out(head)) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, from the header, before ours is asked
        raise ValueError(f"too many pixels ({error}); between 1 and {MAX_PIXELS:,} are read") from error
    except Refused:
        raise
    except Exception as error:  # on bytes that others wrote, Pillow, pydicom and the codecs raise any kind of error
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"broken or cut short ({first_line})") from error


def _way_out(head: bytes) -> str:
    """What to do with a file that is none of the formats that are read."""
    for start, (kind, convertible) in _NOT_READ.items():
        if head.startswith(start):
            code = "import sys; from PIL import Image; Image.open(sys.argv[1]).save(sys.argv[2])"
            how = f': `python -c "{code}" IN OUT.png`' if convertible else ""
            how = f"convert it to PNG, which keeps 16 bits{how}"
            return f"{kind} is not read; {how}"
    return f"not a DICOM, {', '.join(PILLOW_FORMATS)} image; convert it to one of these"
