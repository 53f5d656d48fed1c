"""The compressed frame of a DICOM file: what its codestream says of itself, and run-length decoding within bounds.

A decoder is called only where the codestream holds the picture that the header promises, so that a small file cannot
unpack to gigabytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_medvlm.data.images.base import Refused

if TYPE_CHECKING:
    from pydicom import Dataset

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # JPEG's SOFs, and JPEG-LS's


class Codestream(NamedTuple):
    """What the header of a JPEG, JPEG-LS or JPEG 2000 codestream says."""

    marker: int
    precision: int
    rows: int
    columns: int


def first_frame(dataset: Dataset) -> bytes:
    """The compressed bytes of the first frame."""
    from pydicom.encaps import get_frame

    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return get_frame(
        dataset.PixelData,
        0,
        number_of_frames=int(dataset.NumberOfFrames),
        extended_offsets=tables if all(tables) else None,
    )


def read_codestream(frame: bytes) -> Codestream | None:
    """Size and depth of a codestream, or None where it cannot be told."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if 0 <= start < len(frame) - 43:  # JPEG 2000: SIZ
        right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return Codestream(0x51, (frame[start + 42] & 0x7F) + 1, bottom - top, right - left)
    at = frame.find(b"\xff\xd8") + 2
    while 2 <= at < len(frame) - 9:
        if frame[at] != 0xFF or frame[at + 1] == 0xFF:  # fill bytes
            at += 1
            continue
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            precision, rows, columns = struct.unpack(">BHH", frame[at + 4 : at + 9])
            return Codestream(marker, precision, rows, columns)
        if marker == 0xDA:
            return None
        at += 2 + length
    return None


def check_frame(dataset: Dataset) -> Codestream | None:
    """What the frame says of itself.

    Raises:
        Refused: it is of another size than the header says.
    """
    coded = read_codestream(first_frame(dataset))
    if coded and coded.rows and (coded.rows, coded.columns) != (dataset.Rows, dataset.Columns):
        raise Refused(
            f"its compressed frame is {coded.columns} x {coded.rows} pixels, its header says {dataset.Columns} x "
            f"{dataset.Rows}"
        )
    return coded


def undecodable(coded: Codestream | None, error: Exception, syntax: str) -> str:
    """What to say where every decoder failed: whether the file or the decoders are at fault cannot always be told."""
    lines = "; ".join(line.strip() for line in str(error).splitlines()[1:] if line.strip())
    if coded and coded.marker in (0xC1, 0xC2) and coded.precision > 8:
        return (
            f"no decoder here reads this {coded.precision}-bit JPEG ({syntax}: {lines or error}); decompress it first, "
            "with dcmtk's command `dcmdjpeg IN.dcm OUT.dcm`"
        )
    return (
        f"no decoder here could read its {syntax} ({lines or error}): it is damaged, or of a kind they do not know; "
        "dcmtk's `dcmdjpeg IN.dcm OUT.dcm` or GDCM's `gdcmconv --raw IN.dcm OUT.dcm` may decompress it"
    )


def decode_rle(dataset: Dataset) -> np.ndarray:
    """The first frame of RLE Lossless, (H, W) or (H, W, samples); each segment is unpacked to its size at most.

    PS3.5 annex G: one segment for each byte of each sample, the most significant byte first.

    Raises:
        Refused: a segment that holds more than the header's Rows x Columns, or a depth that RLE cannot have.
        ValueError: one that holds less.
    """
    samples, allocated = dataset.SamplesPerPixel, dataset.BitsAllocated
    if allocated not in (8, 16):
        raise Refused(f"RLE Lossless with {allocated} bit(s) allocated is not read; 8 and 16 are")
    frame, size, width = first_frame(dataset), dataset.Rows * dataset.Columns, allocated // 8
    count, *offsets = struct.unpack("<16I", frame[:64])
    if count != samples * width:
        raise ValueError(f"{count} RLE segments, {samples * width} are expected")
    ends = [*offsets[1:count], len(frame)]
    planes = np.zeros((samples, width, size), np.uint8)
    for number in range(count):
        data = _unpack(frame[offsets[number] : ends[number]], size)
        planes[number // width, width - 1 - number % width] = np.frombuffer(data, np.uint8)
    words = planes.transpose(0, 2, 1).copy().view(f"<u{width}")[..., 0]
    if dataset.PixelRepresentation:
        words = words.view(f"<i{width}")
    picture = words.reshape(samples, dataset.Rows, dataset.Columns)
    return picture[0] if samples == 1 else np.moveaxis(picture, 0, -1)


def _unpack(segment: bytes, size: int) -> bytes:
    """PackBits; bytes behind `size` are padding where they are 0."""
    parts: list[bytes] = []
    at = have = 0
    while at < len(segment) - 1 and have <= size:
        code = segment[at]
        if code < 128:
            part = segment[at + 1 : at + 2 + code]
            at += 2 + code
        elif code > 128:
            part = segment[at + 1 : at + 2] * (257 - code)
            at += 2
        else:
            at += 1
            continue
        parts.append(part)
        have += len(part)
    data = b"".join(parts)
    if have < size:
        raise ValueError(f"an RLE segment of {have:,} bytes, {size:,} are expected")
    if any(data[size:]) or any(segment[at:]):
        raise Refused("its RLE frame holds more pixels than Rows x Columns of its header")
    return data[:size]
