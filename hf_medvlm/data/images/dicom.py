"""DICOM: the first frame as 8-bit grey. PS3.3 C.7.6.3 says what the numbers are, C.11.1 and C.11.2 how they are shown.

Nothing here makes more bytes than Rows x Columns call for, whatever the file holds.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from hf_medvlm.data.images.base import Refused, check_size, largest, luminance, to_8_bits
from hf_medvlm.data.images.dicom_frames import check_frame, decode_rle, undecodable

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
_PALETTE = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
DICOM_TAGS = [
    *"""Rows Columns SamplesPerPixel PlanarConfiguration NumberOfFrames PhotometricInterpretation BitsAllocated
    BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept
    ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence ExtendedOffsetTable
    ExtendedOffsetTableLengths PixelData""".split(),
    *_PALETTE,
]
"""All that is read of a DICOM file: no name or date of a patient enters memory, hence none can enter a message."""

HEADER_LIMIT = 16 * 2**20
"""Bytes of a deflated file that may come before its pixels."""
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"


def read_dicom(handle: BinaryIO) -> Image.Image:
    """The first frame as mode "L".

    Greyscale goes through the modality LUT or the rescale, the VOI LUT or the first usable window, and is inverted
    where it is MONOCHROME1. PALETTE COLOR and RGB become luminance.

    Raises:
        Refused: a kind of DICOM that is not read, or a header that contradicts its pixels.
    """
    dataset = _parse(handle)
    if "PixelData" not in dataset:
        raise Refused("it holds no DICOM pixel data")
    missing = [n for n in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if dataset.get(n) is None]
    if missing:
        raise Refused(f"its header has no {' and no '.join(missing)}, so its pixels cannot be understood")
    _set_defaults(dataset)
    check_size(dataset.Columns, dataset.Rows)
    kind = dataset.PhotometricInterpretation
    grey = kind in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") and dataset.SamplesPerPixel == 1
    bits, high = dataset.BitsStored, dataset.HighBit
    if not (1 <= bits <= 16 and bits <= dataset.BitsAllocated) or not (
        grey or (dataset.SamplesPerPixel == 3 and dataset.BitsAllocated in (8, 16))
    ):
        raise Refused(
            f"{kind} of {dataset.SamplesPerPixel} sample(s) with {bits} of {dataset.BitsAllocated} bits stored is not "
            "read; greyscale, palette colour and RGB of up to 16 bits are"
        )
    if not bits - 1 <= high < dataset.BitsAllocated:
        raise Refused(f"its header says HighBit {high}, which {bits} of {dataset.BitsAllocated} bits cannot have")
    if not grey:
        return _colour(dataset)
    words = _words(dataset)
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    places, padded = _stored(words, dataset, lowest)
    if kind == "PALETTE COLOR":
        return Image.fromarray(_palette(dataset, lowest)[places])
    shown = _shown(dataset, lowest, places, padded)[places]
    if kind == "MONOCHROME1":
        shown = 255 - shown
    if padded is not None:
        shown[padded] = 0
    return Image.fromarray(shown)


# -- the file ----------------------------------------------------------------------------------------------------------


def _parse(handle: BinaryIO) -> Dataset:
    """The elements of `DICOM_TAGS`; of a deflated file no more than its first frame is inflated."""
    import pydicom
    from pydicom.filereader import read_dataset

    start = handle.tell()
    meta = pydicom.Dataset()
    if handle.read(132)[128:] == b"DICM":  # group 2 is never deflated
        meta = read_dataset(handle, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    begins = handle.tell()
    handle.seek(start)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        dataset = pydicom.dcmread(handle, force=True, specific_tags=DICOM_TAGS)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the default of PS3.5 section 10
        return dataset
    handle.seek(begins)
    whole = handle.read()
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    head = inflate.decompress(whole, HEADER_LIMIT)
    plain = io.BytesIO(head)
    elements = read_dataset(plain, False, True, stop_when=_is_pixels, specific_tags=_tags())
    dataset = pydicom.FileDataset("", elements, is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    at = plain.tell()
    if head[at : at + 4] != b"\xe0\x7f\x10\x00":
        raise Refused("it holds no DICOM pixel data")
    (length,) = struct.unpack("<I", head[at + 8 : at + 12])
    _set_defaults(dataset)
    frame = math.ceil(dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated / 8)
    check_size(dataset.Columns, dataset.Rows)
    _check_length(length, frame, dataset)
    pixels = head[at + 12 : at + 12 + frame]
    pixels += inflate.decompress(inflate.unconsumed_tail, frame - len(pixels)) if len(pixels) < frame else b""
    dataset.NumberOfFrames = 1
    dataset.add_new("PixelData", "OB" if dataset.BitsAllocated <= 8 else "OW", pixels + b"\0" * (len(pixels) % 2))
    return dataset


def _is_pixels(tag: Any, vr: str | None, length: int) -> bool:
    return tag == 0x7FE00010


def _tags() -> list[Any]:
    from pydicom.tag import Tag

    return [Tag(name) for name in DICOM_TAGS]


def _set_defaults(dataset: Dataset) -> None:
    """What an old or careless writer leaves out or leaves empty, where one meaning alone is possible."""
    for name, value in (("SamplesPerPixel", 1), ("PixelRepresentation", 0), ("NumberOfFrames", 1)):
        if dataset.get(name) is None:
            setattr(dataset, name, value)
    if dataset.get("BitsStored") is None:
        dataset.BitsStored = dataset.get("BitsAllocated")
    if dataset.get("HighBit") is None and dataset.BitsStored is not None:
        dataset.HighBit = dataset.BitsStored - 1
    if dataset.SamplesPerPixel == 3 and dataset.get("PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0


def _check_length(length: int, frame: int, dataset: Dataset) -> None:
    expected = frame * int(dataset.NumberOfFrames)
    if length > 2 * expected + 2**20:
        raise Refused(
            f"it holds {length:,} bytes of pixels, but Rows x Columns of its header are {dataset.Rows} x "
            f"{dataset.Columns}, which take {expected:,}"
        )


# -- stored values -----------------------------------------------------------------------------------------------------


def _words(dataset: Dataset) -> np.ndarray:
    """The numbers of the first frame, (H, W), with all bits allocated; compressed ones as their codec gives them."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Refused(
            f"its transfer syntax {syntax.name} ({syntax}) is no picture format that pydicom knows"
        ) from error
    if not decoder.is_available:
        raise Refused(
            f"no decoder is installed for its transfer syntax {syntax.name} ({syntax}); "
            "run `pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`"
        )
    if syntax == RLE:
        return decode_rle(dataset)
    if syntax.is_encapsulated:
        coded = check_frame(dataset)
        try:
            return _decoded(dataset, dataset.HighBit + 1)  # bits above may be an overlay
        except RuntimeError as error:
            raise Refused(undecodable(coded, error, syntax.name)) from error
    frame = math.ceil(dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated / 8)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        frame = frame // 3 * 2
    excess = dataset.PixelData[frame * int(dataset.NumberOfFrames) + 1 :]
    if any(excess):  # zeros are padding
        raise Refused(
            f"it holds {len(dataset.PixelData):,} bytes of pixels, but Rows x Columns of its header are {dataset.Rows} "
            f"x {dataset.Columns}, which take {frame * int(dataset.NumberOfFrames):,}"
        )
    grey = dataset.SamplesPerPixel == 1 and dataset.BitsAllocated in (8, 16)
    return _decoded(dataset, dataset.BitsAllocated if grey else dataset.BitsStored)


def _decoded(dataset: Dataset, bits: int) -> np.ndarray:
    """pydicom's pixels of the first frame, with all but the lowest `bits` cleared."""
    from pydicom.pixels import pixel_array

    stored, high = dataset.BitsStored, dataset.HighBit
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    try:
        return pixel_array(dataset, index=0)
    finally:
        dataset.BitsStored, dataset.HighBit = stored, high


def _stored(words: np.ndarray, dataset: Dataset, lowest: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored values less `lowest`, (H, W), so that they are places in a table; and which of them are padding."""
    bits, shift = dataset.BitsStored, dataset.HighBit + 1 - dataset.BitsStored
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLE and words.max() < lowest + 2**bits:
        shift = 0  # a codec of that many bits has nothing below them
    wide = words.astype(np.int32)
    values = wide >> shift
    if not lowest:  # what lies above the bits stored may be an overlay
        values &= 2**bits - 1
    elif not syntax.is_encapsulated or syntax == RLE:  # codecs know the sign, or pydicom has mended it
        values = ((values & 2**bits - 1) ^ 2 ** (bits - 1)) - 2 ** (bits - 1)
    values = np.clip(values, lowest, lowest + 2**bits - 1)
    padding = dataset.get("PixelPaddingValue")
    if padding is None or not isinstance(padding, int):
        return values - lowest, None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted(_as_pixel(end, dataset) for end in (padding, limit if isinstance(limit, int) else padding))
    inside = lowest <= ends[0] and ends[1] < lowest + 2**bits
    compared = values if inside else wide
    padded = (compared >= ends[0]) & (compared <= ends[1])
    return values - lowest, padded if padded.any() and not padded.all() else None


def _as_pixel(value: int, dataset: Dataset) -> int:
    """A padding value as pixels are read: some writers give the same 16 bits as signed and as unsigned."""
    span = 2**dataset.BitsAllocated
    if dataset.PixelRepresentation and value >= span // 2:
        return value - span
    return value + span if not dataset.PixelRepresentation and value < 0 else value


# -- what is shown -----------------------------------------------------------------------------------------------------


def _shown(dataset: Dataset, lowest: int, places: np.ndarray, padded: np.ndarray | None) -> np.ndarray:
    """Grey, 0 to 255, of every value that the bits stored can hold: the chain runs over a table, not over pixels."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    bits = dataset.BitsStored
    stored = np.arange(lowest, lowest + 2**bits)
    slope = _number(dataset, "RescaleSlope") or 1.0  # 0 would make every picture one grey; it is taken as absent
    if dataset.get("ModalityLUTSequence"):
        table, slope, by_lut = apply_modality_lut(stored, dataset).astype(np.float64), 1.0, True
    else:
        table, by_lut = stored * slope + (_number(dataset, "RescaleIntercept") or 0.0), False
    luts = dataset.get("VOILUTSequence")
    if luts and "LUTData" in luts[0] and "LUTDescriptor" in luts[0]:
        out = apply_voi_lut(np.rint(table).astype(np.int64), dataset)
        return to_8_bits(out, out.min(), out.max())
    window = _window(dataset)
    if window:
        return to_8_bits(_through_window(table, *window), 0.0, 1.0)
    # Without a window: a slope changes the unit, and the direction where it is below 0; so does no intercept.
    used = np.unique(places if padded is None else places[~padded])
    for units in (table / abs(slope), np.sign(slope) * stored - min(0.0, np.sign(slope) * (lowest + 2**bits - 1))):
        low = min(0.0, float(units[used].min()))
        high = low + largest(float(units[used].max()) - low, min(8, bits))
        if by_lut or high - low < 2**bits:
            break  # else the intercept alone is larger than all that the bits stored can say
    return to_8_bits(units, low, high)


def _number(dataset: Dataset, name: str) -> float | None:
    """The (first) value of a decimal element; None where it is absent, empty or not finite."""
    numbers = _numbers(dataset, name)
    return numbers[0] if numbers and math.isfinite(numbers[0]) else None


def _numbers(dataset: Dataset, name: str) -> list[float]:
    """All values of a decimal element; what is no number is NaN."""
    value = dataset.get(name)
    if value is None or value == "":
        return []
    values = value if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else [value]
    numbers = []
    for each in values:
        try:
            numbers.append(float(each))
        except (TypeError, ValueError):
            numbers.append(math.nan)
    return numbers


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first window that can be meant; None where there is none, as viewers do.

    PS3.3 C.11.2.1.2: the width is at least 1 for LINEAR and above 0 for the others.
    """
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    least = 1.0 if function not in ("LINEAR_EXACT", "SIGMOID") else math.nextafter(0.0, 1.0)
    for centre, width in zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False):
        if math.isfinite(centre) and math.isfinite(width) and width >= least:
            return centre, width, function
    return None


def _through_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, from 0 (black) to 1 (white)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (values - centre) / width + 0.5
    return np.where(values <= centre - width / 2, 0.0, np.where(values > centre + width / 2, 1.0, inside))


def _palette(dataset: Dataset, lowest: int) -> np.ndarray:
    """Luminance, 0 to 255, of every stored value by the palette's three tables (PS3.3 C.7.6.3.1.5 and 1.6)."""
    from pydicom.pixels import apply_color_lut

    if "RedPaletteColorLookupTableDescriptor" not in dataset:
        raise Refused("PALETTE COLOR without its palette is not read")
    colours = apply_color_lut(np.arange(lowest, lowest + 2**dataset.BitsStored), dataset)[..., :3].astype(np.float64)
    # entries of 8 bits are often stored in 16
    return to_8_bits(luminance(*np.moveaxis(colours, -1, 0)), 0, 255 if colours.max() <= 255 else 65535)


def _colour(dataset: Dataset) -> Image.Image:
    """Three samples: Pillow's luminance of 8 bits, ours of 9 to 16. pydicom makes RGB of YBR."""
    pixels = _words(dataset)
    if pixels.ndim != 3:
        raise Refused(f"{dataset.PhotometricInterpretation} that decodes to {pixels.ndim} dimensions is not read")
    if dataset.PhotometricInterpretation not in ("RGB",) and not dataset.PhotometricInterpretation.startswith("YBR"):
        raise Refused(f"the colours of {dataset.PhotometricInterpretation} are not read; RGB and YBR are")
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels).convert("L")
    grey = luminance(*np.moveaxis(pixels.astype(np.float64), -1, 0))
    return Image.fromarray(to_8_bits(grey, 0, largest(grey.max())))
