"""Pictures and DICOM."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import mutate
from fuzzing.pool import Made, Reader

UNCHECKED = ("JPEG", "BMP", "WEBP")
"""Formats without a checksum: no reader can tell a flipped bit from a pixel."""


def _picture(rng: Random, side: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:side, 0 : side + 8]
    return np.uint8((x * 5 + y * rng.randint(1, 3)) % 256)


def _encoded(rng: Random) -> tuple[bytes, str]:
    pixels, handle = _picture(rng), io.BytesIO()
    kind = rng.choice(["png", "png16", "rgb", "palette", "la", "jpg", "progressive", "bmp", "webp"])
    image = Image.fromarray(pixels.astype(np.uint16) * 13 if kind == "png16" else pixels)
    image = {
        "rgb": lambda: image.convert("RGB"),
        "palette": lambda: image.convert("P"),
        "la": lambda: image.convert("LA"),
    }.get(kind, lambda: image)()
    names = {"jpg": "JPEG", "progressive": "JPEG", "bmp": "BMP", "webp": "WEBP"}
    image.save(handle, names.get(kind, "PNG"), **({"progressive": True} if kind == "progressive" else {}))
    return handle.getvalue(), {"JPEG": ".jpg", "BMP": ".bmp", "WEBP": ".webp"}.get(names.get(kind, ""), ".png")


SIDES = [12_000, 30_000, 2**31 - 1]
"""Pixels a side of a picture in a small file; the first are just few enough to be decoded."""


def _bomb(rng: Random) -> bytes:
    """A small file of a huge picture."""
    side = rng.choice(SIDES)
    if rng.random() < 0.5:
        return b"BM" + bytes(12) + (40).to_bytes(4, "little") + side.to_bytes(4, "little") * 2 + bytes(32)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    body = zlib.compress(bytes(20_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def make_image(rng: Random, folder: Path) -> Made:
    content, suffix = _encoded(rng)
    path = folder / f"picture{suffix if rng.random() < 0.9 else rng.choice(['.png', '.jpg', '.dcm', '', '.PNG'])}"
    way = rng.random()
    if way < 0.04:
        path.write_bytes(content)
        return Made(path, "nothing", [path.name], valid=True, known=content)
    if way < 0.12:
        return Made(path, mutate.special(path, rng), [path.name])
    if way < 0.16:
        path.write_bytes(_bomb(rng))
        return Made(path, "a huge picture in a small file", [path.name])
    damaged, what = mutate.bytes_of(content, rng)
    path.write_bytes(damaged)
    return Made(path, what, [path.name], known=content)


def read_image(made: Made) -> Any:
    from hf_medvlm.data.images import open_radiograph

    return open_radiograph(made.target)


def justify_image(made: Made, result: Any) -> str | None:
    if result.mode != "L":
        return None
    try:
        with Image.open(made.target) as header:
            size, kind = header.size, header.format
    except Exception:
        return None
    if result.size != size:
        return None
    if kind in UNCHECKED:
        return "the size of its header; the format has no checksum"
    whole = Image.open(io.BytesIO(made.known)) if made.known else None
    if whole is None or whole.size != size:
        return None
    from hf_medvlm.data.images import open_radiograph

    before = np.asarray(open_radiograph(io.BytesIO(made.known)))
    return "the pixels of the whole file" if np.array_equal(before, np.asarray(result)) else None


# ---------------------------------------------------------------- DICOM


def _dicom(rng: Random) -> Any:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

    data = pydicom.Dataset()
    pixels = _picture(rng)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = rng.choice(["MONOCHROME2", "MONOCHROME1"])
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    if rng.random() < 0.6:
        data.WindowCenter, data.WindowWidth = "2000", "3500"
        data.RescaleSlope, data.RescaleIntercept = "1", "0"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = rng.choice([ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    if rng.random() < 0.2:
        data.compress(RLELossless, generate_instance_uid=False)
    return data


FIELDS = """Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation
    NumberOfFrames WindowCenter WindowWidth RescaleSlope RescaleIntercept VOILUTFunction PixelPaddingValue
    PlanarConfiguration""".split()
VALUES: list[Any] = [
    *(0, 1, 2, 3, 7, 8, 13, 16, 32, 64, 40000, 65535, "", None, "x", "0", "-1", "nan", "inf", "1e30", "1e-30", "1e300"),
    *("0.0001", "-10", ["1", "2"], [], "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "LINEAR_EXACT", "SIGMOID"),
]


def make_dicom(rng: Random, folder: Path) -> Made:
    import pydicom

    path, data = folder / "chest.dcm", _dicom(rng)
    way = rng.random()
    what, known = "nothing", None
    if way < 0.45 and way > 0.04:
        field, value = rng.choice(FIELDS), rng.choice(VALUES)
        try:
            setattr(data, field, value)
            what = f"{field} is {mutate.short(value)}"
        except Exception:
            what = f"{field} cannot be {mutate.short(value)}"
    if way > 0.95:
        data.PixelData = bytes(60_000_000)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        what = "inflates to 60 MB"
    try:
        pydicom.dcmwrite(path, data, enforce_file_format=rng.random() < 0.8)
    except Exception:  # pydicom writes no such value
        path.write_bytes(b"")
        what = f"{what}, not writable, so empty"
    if what == "nothing" and way < 0.04:
        return Made(path, what, [path.name], valid=True)
    if 0.45 <= way < 0.9:
        content, what = mutate.bytes_of(path.read_bytes(), rng)
        path.write_bytes(content)
    elif 0.9 <= way <= 0.95:
        what = mutate.special(path, rng)
    return Made(path, what, [path.name], known=known)


def justify_dicom(made: Made, result: Any) -> str | None:
    import pydicom

    from hf_medvlm.data.images.read import why_unusable

    if result.mode != "L":
        return None
    try:
        header = pydicom.dcmread(made.target, force=True, specific_tags=["Rows", "Columns"])
        size = (header.get("Columns"), header.get("Rows"))
    except Exception:
        size = (None, None)
    if result.size != size and not _is_picture(made.target):
        return None
    low, high = result.getextrema()
    if low == high:
        return "one grey value, which find_broken names" if why_unusable(made.target) else None
    return "the size of its header, several grey values; DICOM has no checksum"


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format in ("PNG", "JPEG", "BMP", "WEBP")
    except Exception:
        return False


READERS = [
    Reader("images", make_image, read_image, justify_image),
    Reader("DICOM", make_dicom, read_image, justify_dicom),
]
