"""DICOM headers of every kind against pydicom's own chain, and against the standard where pydicom's chain is wrong."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless
from test_images import read, write_dicom

from hf_medvlm.data.images import open_radiograph

RAMP = np.linspace(0, 3780, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def lut(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    return item


def by_pydicom(path: Path) -> np.ndarray:
    """Modality and VOI by pydicom, scaled by what the window or the LUT make black and white, then the inversion."""
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if "VOILUTSequence" in dataset:
        shown = apply_voi_lut(np.rint(values).astype(int), dataset).astype(float)
        every = apply_modality_lut(np.arange(2**dataset.BitsStored), dataset)
        ends = apply_voi_lut(np.rint(every).astype(int), dataset)
        low, high = float(ends.min()), float(ends.max())
    else:
        shown = apply_voi_lut(values, dataset)
        low, high = sorted(float(apply_modality_lut(np.array([v]), dataset)[0]) for v in _ends(dataset))
    grey = 255 * (shown - low) / (high - low)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _ends(dataset: Dataset) -> tuple[int, int]:
    half = 2 ** (dataset.BitsStored - 1)
    return (-half, half - 1) if dataset.PixelRepresentation else (0, 2 * half - 1)


@pytest.mark.parametrize("seed", range(40))
def test_made_up_headers_agree_with_pydicom(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(8, 17))
    signed = bool(rng.integers(2))
    pixels = rng.integers(0, 2**bits, (24, 32)).astype(np.uint16)
    if signed:
        pixels = (pixels.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    slope, intercept = float(rng.choice([1, 2, 0.5, 0.01, 1e-4])), float(rng.choice([0, -1024, 3.5]))
    elements = {"PhotometricInterpretation": str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))}
    elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    middle = float(pixels.mean()) * slope + intercept
    width = 2**bits * slope * float(rng.uniform(0.2, 1.5))
    if rng.integers(4) == 0 and not signed and slope >= 1:
        size = int(2**bits * slope)
        curve = np.sort(rng.integers(0, 2**12, min(size, 4000)))
        elements["VOILUTSequence"] = [lut(curve, int(max(0, intercept)), 12)]
    else:
        function = "LINEAR_EXACT" if width < 2 else str(rng.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
        elements |= {"WindowCenter": f"{middle:.6g}", "WindowWidth": f"{width:.6g}", "VOILUTFunction": function}
    path = write_dicom(tmp_path / "x.dcm", pixels, bits, **elements)
    assert np.abs(read(path) - by_pydicom(path)).max() <= 0.51


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope, intercept, centre, width", [(-1, 4095, 2048, 4096), (-10, 3000, -17475, 40950)])
def test_a_negative_slope_with_a_window_follows_the_standard(
    tmp_path: Path, function: str, slope: float, intercept: float, centre: float, width: float
) -> None:
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept, "VOILUTFunction": function}
    elements |= {"WindowCenter": centre, "WindowWidth": width}
    grey = read(write_dicom(tmp_path / "2.dcm", RAMP, 12, **elements))
    x = RAMP * float(slope) + intercept
    expected = {
        "LINEAR": np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - centre) / width + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - centre) / width)),
    }[function]
    assert np.abs(grey - 255 * expected).max() <= 0.51
    assert grey[0, 0] > 220 and grey[-1, -1] < 45
    inverted = read(write_dicom(tmp_path / "1.dcm", RAMP, 12, PhotometricInterpretation="MONOCHROME1", **elements))
    assert (inverted == 255 - grey).all()


@pytest.mark.parametrize("slope", [1, 0.001, 0.02, 0.1, 1e-6, 7, 0, "", None])
def test_without_a_window_a_slope_changes_no_pixel(tmp_path: Path, slope: object) -> None:
    grey = read(write_dicom(tmp_path / "x.dcm", RAMP, 12, RescaleSlope=slope, RescaleIntercept=0))
    assert grey[0, 0] == 0 and grey[-1, -1] == 235  # 3780 of 4095
    negative = -float(slope or 1)
    path = write_dicom(tmp_path / "n.dcm", RAMP, 12, RescaleSlope=negative, RescaleIntercept=-4095 * negative)
    assert np.abs(read(path) - (255 - grey)).max() <= 1


def test_fractional_slope_with_a_narrow_window(tmp_path: Path) -> None:
    elements = {"RescaleSlope": 0.0001, "RescaleIntercept": 0, "WindowCenter": 0.2, "WindowWidth": 0.4}
    grey = read(write_dicom(tmp_path / "x.dcm", RAMP, 12, VOILUTFunction="LINEAR_EXACT", **elements))
    assert grey.max() == 241 and grey[0, 0] == 0


@pytest.mark.parametrize(
    "centre, width", [(100, 0), (100, -5), (100, 0.4), ("", ""), (100, ""), ("NaN", 400), (100, "1e400"), (100, "NaN")]
)
def test_a_window_that_cannot_be_meant_is_no_window(tmp_path: Path, centre: object, width: object) -> None:
    plain = read(write_dicom(tmp_path / "p.dcm", RAMP, 12))
    with pydicom.config.disable_value_validation():
        path = write_dicom(tmp_path / "x.dcm", RAMP, 12, WindowCenter=centre, WindowWidth=width)
        assert (read(path) == plain).all()


def test_the_first_usable_of_several_windows_is_taken(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP, 12, WindowCenter=[5, 1000], WindowWidth=[0, 600])
    assert (read(path) == read(write_dicom(tmp_path / "y.dcm", RAMP, 12, WindowCenter=1000, WindowWidth=600))).all()


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_an_empty_rescale_is_none(tmp_path: Path, name: str) -> None:
    plain = read(write_dicom(tmp_path / "p.dcm", RAMP, 12))
    elements = {"RescaleSlope": 1, "RescaleIntercept": 0} | {name: None}
    assert (read(write_dicom(tmp_path / "x.dcm", RAMP, 12, **elements)) == plain).all()


def bordered(value: int, dtype: type = np.uint16) -> np.ndarray:
    pixels = RAMP.astype(dtype)
    pixels[:8], pixels[:, :4] = value, value
    return pixels


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_padding_is_black_and_does_not_count(tmp_path: Path, photometric: str, window: dict) -> None:
    kind = {"PhotometricInterpretation": photometric} | window
    grey = read(write_dicom(tmp_path / "x.dcm", bordered(65535), 16, PixelPaddingValue=65535, **kind))
    plain = read(write_dicom(tmp_path / "p.dcm", RAMP, 16, **kind))
    assert (grey[:8] == 0).all() and (grey[:, :4] == 0).all()
    assert (grey[8:, 4:] == plain[8:, 4:]).all()


def test_padding_as_a_range_and_with_a_sign(tmp_path: Path) -> None:
    pixels = bordered(60000)
    pixels[0] = 65000
    path = write_dicom(tmp_path / "r.dcm", pixels, 16, PixelPaddingValue=65535, PixelPaddingRangeLimit=60000)
    grey = read(path)
    assert (grey[:8] == 0).all() and grey[-1, -1] == 235
    path = write_dicom(tmp_path / "s.dcm", bordered(-2000, np.int16), 16, PixelPaddingValue=-2000)
    grey = read(path)
    assert (grey[:8] == 0).all() and grey[-1, -1] == 235
    # 12 bits stored, padding in the bits above them: white pixels of 4095 stay white
    pixels = bordered(0xF830)
    pixels[-1, -1] = 4095
    grey = read(write_dicom(tmp_path / "o.dcm", pixels, 12, PixelPaddingValue=0xF830))
    assert (grey[:8] == 0).all() and grey[-1, -1] == 255


@pytest.mark.parametrize("bits", range(1, 8))
def test_fewer_than_8_bits_fill_the_range(tmp_path: Path, bits: int) -> None:
    pixels = (np.arange(64 * 64).reshape(64, 64) % 2**bits).astype(np.uint8)
    grey = read(write_dicom(tmp_path / "x.dcm", pixels, bits))
    assert np.abs(grey - pixels / (2**bits - 1) * 255).max() <= 0.51


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_left_aligned_bits(tmp_path: Path, syntax: str, signed: bool) -> None:
    values = RAMP.astype(np.int32) - 2048 * signed
    right = write_dicom(tmp_path / "r.dcm", values.astype(np.int16 if signed else np.uint16), 12)
    shifted = (values << 4).astype(np.int16 if signed else np.uint16)
    left = write_dicom(tmp_path / "l.dcm", shifted, 12, HighBit=15)
    if syntax == RLELossless:
        dataset = pydicom.dcmread(left)
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.compress(RLELossless)
        dataset.BitsStored = 12
        dataset.save_as(left)
    assert (read(left) == read(right)).all()


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, RLELossless, pydicom.uid.JPEG2000Lossless])
def test_an_overlay_in_the_high_bits_is_not_seen(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP | (np.eye(64, dtype=np.uint16) << 15), 12)
    if syntax != pydicom.uid.ExplicitVRLittleEndian:
        dataset = pydicom.dcmread(path)
        dataset.BitsStored, dataset.HighBit = 16, 15  # what is compressed has all bits
        dataset.compress(syntax)
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.save_as(path)
    assert (read(path) == read(write_dicom(tmp_path / "p.dcm", RAMP, 12))).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_presentation_shape_inverts_nothing_a_second_time(tmp_path: Path, photometric: str) -> None:
    plain = write_dicom(tmp_path / "p.dcm", RAMP, 12, PhotometricInterpretation=photometric)
    for shape in ("INVERSE", "IDENTITY"):  # the tag is often wrong; the photometric interpretation decides
        stated = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
        assert (read(write_dicom(tmp_path / f"{shape}.dcm", RAMP, 12, **stated)) == read(plain)).all()


def test_a_12_bit_jpeg_is_not_called_broken() -> None:
    path = pydicom.data.get_testdata_file("JPEG-lossy.dcm", download=False)
    with pytest.raises(ValueError, match=r"no decoder here reads this 12-bit JPEG .*dcmdjpeg") as caught:
        open_radiograph(path)
    assert "broken" not in str(caught.value) and "pylibjpeg" in str(caught.value)


def test_a_jpeg_2000_whose_sizes_a_delimiter_overwrote_is_refused_with_both_sizes() -> None:
    path = pydicom.data.get_testdata_file("JPEG2000-embedded-sequence-delimiter.dcm", download=False)
    with pytest.raises(ValueError, match=r"compressed frame is \d+ x 1024 pixels, its header says 256 x 1024"):
        open_radiograph(path)


def test_palette_colour_is_read(tmp_path: Path) -> None:
    pixels = (np.arange(64 * 64).reshape(64, 64) % 256).astype(np.uint8)
    elements: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    ramps = {"Red": np.arange(256), "Green": np.arange(256)[::-1], "Blue": np.full(256, 7)}
    for name, values in ramps.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = (values * 257).astype("<u2").tobytes()
    grey = read(write_dicom(tmp_path / "x.dcm", pixels, 8, **elements))
    colours = [ramp[pixels] for ramp in ramps.values()]
    assert np.abs(grey - sum(w * c for w, c in zip((0.299, 0.587, 0.114), colours, strict=True))).max() <= 1
    with pytest.raises(ValueError, match="PALETTE COLOR without its palette"):
        open_radiograph(write_dicom(tmp_path / "n.dcm", pixels, 8, PhotometricInterpretation="PALETTE COLOR"))


def deflated(path: Path, zeros: int, **elements: object) -> Path:
    dataset = pydicom.dcmread(write_dicom(path, RAMP, 12, **elements))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData += b"\0" * zeros
    dataset.save_as(path)
    return path


def test_a_deflated_file_is_inflated_no_further_than_its_pixels(tmp_path: Path) -> None:
    plain = read(write_dicom(tmp_path / "p.dcm", RAMP, 12))
    assert (read(deflated(tmp_path / "x.dcm", 0)) == plain).all()
    bomb = deflated(tmp_path / "bomb.dcm", 80 * 2**20)
    assert bomb.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds 83,894,[0-9]+ bytes of pixels, but Rows x Columns .* 64 x 64"):
        open_radiograph(bomb)
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()
    whole = (tmp_path / "x.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) - 300])
    with pytest.raises(ValueError, match="cut.dcm: "):
        open_radiograph(tmp_path / "cut.dcm")


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, RLELossless, pydicom.uid.JPEG2000Lossless])
def test_pixels_of_another_size_than_the_header_are_refused(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP + 1, 12, syntax) if syntax != pydicom.uid.JPEG2000Lossless else None
    if path is None:  # no encoder here: a codestream's first bytes are enough
        path = write_dicom(tmp_path / "x.dcm", RAMP, 12)
        dataset = pydicom.dcmread(path)
        size = struct.pack(">HHIIII", 41, 0, 60000, 60000, 0, 0) + b"\0" * 22
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + size])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset = pydicom.dcmread(path)
        dataset.Rows = 60
    dataset.save_as(path)
    with pytest.raises(ValueError, match="Rows x Columns of its header|its header says 64 x 64"):
        open_radiograph(path)


def test_a_jpeg_named_dcm_is_read(tmp_path: Path) -> None:
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
    (tmp_path / "x.dcm").write_bytes((tmp_path / "x.jpg").read_bytes())
    assert (read(tmp_path / "x.dcm") == read(tmp_path / "x.jpg")).all()


@pytest.mark.parametrize("name", ["x.png", "x.dcm", "x.jsonl"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "zero.dcm").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / "zero.dcm"):
        with pytest.raises(ValueError, match="no regular file"):
            open_radiograph(path)


def deep_png(pixels: np.ndarray, exif: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W, channels), as OpenCV writes 3 channels of uint16."""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"eXIf", exif) if exif else b"", chunk(b"IDAT", zlib.compress(lines))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("full", [0xFFFF, 4095])
def test_12_bits_in_a_16_bit_png_of_any_colour(tmp_path: Path, channels: int, full: int) -> None:
    pixels = np.repeat(RAMP[..., None], channels, -1)
    if channels in (2, 4):
        pixels[..., -1] = full
        pixels[0, :, -1] = 0
    (tmp_path / "x.png").write_bytes(deep_png(pixels))
    grey = read(tmp_path / "x.png")
    expected = RAMP / 4095 * 255
    if channels in (2, 4):
        expected[0] = 0
    assert np.abs(grey - expected).max() <= 0.51 and grey.max() == 235


@pytest.mark.parametrize("channels", [1, 3])
def test_the_exif_orientation_of_16_bits_is_obeyed(tmp_path: Path, channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.repeat(RAMP[:32, :, None], channels, -1)
    (tmp_path / "x.png").write_bytes(deep_png(wide, exif.tobytes().removeprefix(b"Exif\0\0")))
    (tmp_path / "p.png").write_bytes(deep_png(wide))
    assert (read(tmp_path / "x.png") == np.rot90(read(tmp_path / "p.png"), -1)).all()


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_tiff_and_gif_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(path)
    with pytest.raises(
        ValueError, match=rf"a {'TIFF' if suffix == 'tif' else 'GIF'} is not read; convert .*Image.open"
    ):
        open_radiograph(path)


def test_bytes_are_read_like_files(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP, 12)
    with open(path, "rb") as handle:
        assert (np.asarray(open_radiograph(handle)) == read(path)).all()


def test_a_jpeg_is_decoded_no_smaller_than_asked(tmp_path: Path) -> None:
    picture = Image.effect_noise((400, 320), 60).resize((800, 640))
    picture.save(tmp_path / "x.jpg", quality=95)
    assert open_radiograph(tmp_path / "x.jpg", lambda *size: (200, 160)).size == (200, 160)
    small = open_radiograph(tmp_path / "x.jpg", lambda width, height: (width // 4 + 1, height // 4))
    assert small.size == (400, 320) and small.info["full_size"] == (800, 640)
    assert open_radiograph(tmp_path / "x.jpg").size == (800, 640)
