"""Image files in, 8-bit greyscale pictures out; and the augmentation that a radiograph can bear.

Knows no study, no model and no tensor. Pixels stay at the size they were stored in: resizing and normalising belong to
the model's image processor.

How deeper pixels become 8 bits:
    16-bit PNG, and DICOM without a window: 0 stays black and the largest number of the fewest bits (8 or more) that
        hold the picture becomes white. A 12-bit picture in a 16-bit file is thus not almost black, and the exposure is
        not stretched, as the minimum and maximum of the picture would do.
    DICOM with a window or a VOI LUT: the first one is applied, after the modality LUT or rescale slope and intercept.
    MONOCHROME1 is inverted, so that bone is bright and air is dark.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 150_000_000
"""Larger pictures are refused from their header alone; the largest radiographs have some 20 million pixels."""


class _Refused(ValueError):
    """The file is understood, and is not read for a reason of ours."""


BILINEAR = Image.Resampling.BILINEAR
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
DICOM_TAGS = """Rows Columns SamplesPerPixel PlanarConfiguration NumberOfFrames PhotometricInterpretation BitsAllocated
    BitsStored HighBit PixelRepresentation RescaleSlope RescaleIntercept ModalityLUTSequence WindowCenter WindowWidth
    VOILUTFunction VOILUTSequence ExtendedOffsetTable ExtendedOffsetTableLengths PixelData""".split()
"""All that is read of a DICOM file: no name or date of a patient enters memory, hence none can enter a message."""


def open_radiograph(path: str | Path) -> Image.Image:
    """Read a PNG, JPEG, BMP, WebP or DICOM file as a PIL image of mode "L".

    DICOM is known by its content or its suffix. Of several frames the first is taken. Colour becomes luminance, what is
    transparent becomes black, and a JPEG's EXIF orientation is obeyed.

    Raises:
        ValueError: the file is missing, empty, not an image, cut short, larger than `MAX_PIXELS`, or compressed in a
            way that no installed decoder reads. The message names the file and the reason.
    """
    try:
        return _decode(Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_broken(paths: Iterable[str | Path], workers: int | None = None) -> dict[Path, str]:
    """Decode every file to its last pixel, in parallel; return the reason for each one that cannot be read.

    Args:
        workers: threads (the decoders release Python's lock); by default as many as `ThreadPoolExecutor` takes.
    """
    from tqdm import tqdm

    unique = list(dict.fromkeys(map(Path, paths)))
    with ThreadPoolExecutor(workers) as pool:
        reasons = tqdm(pool.map(_why_broken, unique), "Checking images", len(unique), unit="image", disable=None)
        return {path: reason for path, reason in zip(unique, reasons, strict=True) if reason}


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A slightly different exposure of the same patient: pose, brightness, contrast, gamma, noise; "L", the same size.

    Never mirrored, since reports name left and right, and the heart lies on the left. All randomness comes from `rng`.
    """
    pixels = np.asarray(image.transform(image.size, Image.Transform.AFFINE, _pose(image.size, rng), BILINEAR))
    gamma, contrast, brightness = rng.uniform((0.8, 0.85, -0.08), (1.25, 1.15, 0.08))
    curve = contrast * (np.linspace(0, 1, 256) ** gamma - 0.5) + 0.5 + brightness
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, 5))
    noisy = (255 * curve).astype(np.float32)[pixels] + noise
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _pose(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    """PIL's affine coefficients (output to input) of up to 6 degrees, 6 % in size and 4 % in place about the centre."""
    angle = np.deg2rad(rng.uniform(-6, 6))
    scale = rng.uniform(0.94, 1.06)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale  # determinant 1 / scale^2 > 0: no reflection
    centre = np.array(size) / 2
    shift = rng.uniform(-0.04, 0.04, 2) * size
    x, y = centre - np.array([[cos, -sin], [sin, cos]]) @ (centre + shift)
    return float(cos), float(-sin), float(x), float(sin), float(cos), float(y)


def _why_broken(path: Path) -> str | None:
    try:
        _decode(path)
    except ValueError as error:
        return str(error)
    return None


def _decode(path: Path) -> Image.Image:
    """The picture, or `ValueError` with the bare reason."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(132)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except OSError as error:
        raise ValueError(f"it cannot be opened: {error.strerror}") from error
    if not head:
        raise ValueError("the file is empty (zero bytes)")
    is_dicom = head[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES
    try:
        return _read_dicom(path) if is_dicom else _read_pillow(path)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not a DICOM, {', '.join(PILLOW_FORMATS)} image; convert it to one of these") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, from the header, before ours is asked
        raise ValueError(f"too many pixels ({error}); between 1 and {MAX_PIXELS:,} are read") from error
    except _Refused:
        raise
    except Exception as error:  # on bytes that others wrote, Pillow, pydicom and the codecs raise any kind of error
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"broken or cut short ({first_line})") from error


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise _Refused(f"{width} x {height} pixels; between 1 and {MAX_PIXELS:,} are read, so make a smaller copy")


def _read_pillow(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, below
        opened = Image.open(path, formats=PILLOW_FORMATS)
    with opened as image:
        _check_size(*image.size)
        image.load()
        return to_greyscale(image)


def to_greyscale(image: Image.Image) -> Image.Image:
    """A picture that Pillow has read, of any mode, as `open_radiograph` gives it: mode "L"."""
    if image.mode.startswith("I"):  # "I;16" or, in older versions of Pillow, "I"
        values = np.asarray(image)
        return Image.fromarray(_to_8_bits(values, 0, _largest(values.max())))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return image.convert("L")


def _read_dicom(path: Path) -> Image.Image:
    """The first frame. PS3.3 C.11: modality LUT, then VOI LUT or window, then the photometric interpretation."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

    dataset = pydicom.dcmread(path, force=True, specific_tags=DICOM_TAGS)
    if "PixelData" not in dataset:
        raise _Refused("it holds no DICOM pixel data")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the default of PS3.5 section 10.1
    _check_size(dataset.Columns, dataset.Rows)
    _check_decoder(dataset.file_meta.TransferSyntaxUID)
    pixels = pixel_array(dataset, index=0)
    if dataset.SamplesPerPixel == 3 and dataset.BitsAllocated == 8:
        return Image.fromarray(pixels).convert("L")
    if not dataset.PhotometricInterpretation.startswith("MONOCHROME") or not 1 <= dataset.BitsStored <= 16:
        raise _Refused(
            f"{dataset.PhotometricInterpretation} with {dataset.BitsStored} bits stored is not read; "
            "greyscale of up to 16 bits and RGB of 8 are"
        )

    # The chain is applied to a table of every value that the bits stored can hold, not to every pixel.
    lowest = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
    pixels = np.clip(pixels, lowest, lowest + 2**dataset.BitsStored - 1).astype(np.int32) - lowest
    table = apply_modality_lut(np.arange(lowest, lowest + 2**dataset.BitsStored), dataset)
    if dataset.get("VOILUTSequence"):
        shown = apply_voi_lut(np.rint(table).astype(np.int64), dataset)
        low, high = shown.min(), shown.max()
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # two values far outside, to learn what the window makes black and white
            windowed = apply_windowing(np.append(table, (-1e9, 1e9)), dataset)
        shown, low, high = windowed[:-2], windowed[-2], windowed[-1]
    else:
        shown, low = table, min(0, table[pixels].min())
        high = low + _largest(table[pixels].max() - low)
    grey = _to_8_bits(shown, low, high)[pixels]
    return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey)


def _check_decoder(syntax: str) -> None:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _Refused(
            f"its transfer syntax {syntax.name} ({syntax}) is no picture format that pydicom knows"
        ) from error
    if not decoder.is_available:
        raise _Refused(
            f"no decoder is installed for its transfer syntax {syntax.name} ({syntax}); "
            "run `pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`"
        )


def _largest(value: float) -> int:
    """The largest number of the fewest bits, 8 or more, that hold `value`: 255, 511, ... 4095, ... 65535."""
    return 2 ** max(8, int(value).bit_length()) - 1


def _to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
