"""Reading and augmenting radiographs: files made here, and real DICOM where the shared data is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from hf_medvlm.data.images import augment, base, open_radiograph
from hf_medvlm.data.images.augment import Variation
from hf_medvlm.data.verification import check_images

REAL_DICOM = Path(__file__).parents[3] / "shared" / "data" / "dicom"


def ramp(bits: int, rows: int = 16, columns: int = 256) -> np.ndarray:
    """Left to right from 0 to the largest value of so many bits; the top row differs, so that up and down do too."""
    values = np.linspace(0, 2**bits - 1, columns).round().astype(np.uint16)
    picture = np.tile(values, (rows, 1))
    picture[0] = 0
    return picture


def write_dicom(path: Path, pixels: np.ndarray, bits: int, syntax: str = ExplicitVRLittleEndian, **elements) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Secret^Name"
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.NumberOfFrames = len(frames)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax)
    dataset.save_as(path, enforce_file_format=True)
    return path


def read(path: Path) -> np.ndarray:
    image = open_radiograph(path)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


MODES = {"png": ("L", "RGB", "RGBA", "P", "LA", "1"), "bmp": ("L", "RGB", "P", "1"), "webp": ("L", "RGB", "RGBA")}


@pytest.mark.parametrize("suffix, mode", [(suffix, mode) for suffix in MODES for mode in MODES[suffix]])
def test_every_mode_becomes_grey(tmp_path: Path, suffix: str, mode: str) -> None:
    grey = Image.fromarray(ramp(8).astype(np.uint8))
    if mode == "1":
        grey = grey.point(lambda value: 255 * (value > 127))
    path = tmp_path / f"x.{suffix}"
    grey.convert(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.abs(read(path) - np.asarray(grey).astype(int)).max() <= 1


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[0, :, 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png")[:2, 0] == [0, 200]).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_16_bit_png_fills_8_bits_whatever_its_true_depth(tmp_path: Path, bits: int) -> None:
    Image.fromarray(ramp(bits)).save(tmp_path / "x.png")
    assert np.abs(read(tmp_path / "x.png") - ramp(8).astype(int)).max() <= 1


def test_16_bit_png_keeps_its_exposure(tmp_path: Path) -> None:
    """A pale picture stays pale: the minimum and maximum of the picture do not become black and white."""
    Image.fromarray(np.array([[30000, 50000]], np.uint16)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png").tolist() == [[117, 195]]


def test_jpeg_orientation_is_obeyed(tmp_path: Path) -> None:
    picture = Image.fromarray(np.kron([[0, 255], [0, 0]], np.ones((32, 32))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    picture.rotate(180).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert np.abs(read(tmp_path / "x.jpg") - np.asarray(picture).astype(int)).mean() < 3


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_dicom_depths(tmp_path: Path, bits: int, syntax: str) -> None:
    pixels = ramp(bits) if bits > 8 else ramp(bits).astype(np.uint8)
    assert np.abs(read(write_dicom(tmp_path / "x.dcm", pixels, bits, syntax)) - ramp(8).astype(int)).max() <= 1


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    assert read(write_dicom(tmp_path / "no_suffix", ramp(12), 12)).max() == 255


def test_dicom_without_preamble(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "x.dcm", ramp(12), 12)
    dataset = pydicom.dcmread(whole)
    del dataset.file_meta
    dataset.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (read(tmp_path / "bare.dcm") == read(whole)).all()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read(write_dicom(tmp_path / "2.dcm", ramp(12), 12))
    inverted = read(write_dicom(tmp_path / "1.dcm", ramp(12), 12, PhotometricInterpretation="MONOCHROME1"))
    assert (inverted == 255 - plain).all()


def slow_window(pixels: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, pixel by pixel, from 0 to 255."""
    out = np.empty(pixels.shape)
    for place, x in np.ndenumerate(pixels.astype(float)):
        if x <= centre - 0.5 - (width - 1) / 2:
            out[place] = 0
        elif x > centre - 0.5 + (width - 1) / 2:
            out[place] = 255
        else:
            out[place] = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return out


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope, intercept", [(1, 0), (2, -1024)])
def test_window_follows_the_standard(tmp_path: Path, photometric: str, slope: float, intercept: float) -> None:
    elements = {"WindowCenter": [1000, 3], "WindowWidth": [600, 5], "PhotometricInterpretation": photometric}
    elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    pixels = read(write_dicom(tmp_path / "x.dcm", ramp(12), 12, **elements))
    expected = slow_window(ramp(12) * float(slope) + intercept, 1000, 600)
    assert np.abs(pixels - (255 - expected if photometric == "MONOCHROME1" else expected)).max() <= 0.5001


def test_voi_lut_goes_before_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    curve = np.array([value // 2 if value < 2048 else min(4095, 3 * value // 2 - 2048) for value in range(4096)])
    table.LUTData = curve.astype("<u2").tobytes()
    elements = {"VOILUTSequence": [table], "WindowCenter": 10, "WindowWidth": 2}
    pixels = read(write_dicom(tmp_path / "x.dcm", ramp(12), 12, **elements))
    expected = curve[ramp(12)] / curve.max() * 255
    assert np.abs(pixels - expected).max() <= 0.5001


def test_signed_dicom(tmp_path: Path) -> None:
    pixels = (ramp(12).astype(np.int16) - 2048).astype(np.int16)
    assert np.abs(read(write_dicom(tmp_path / "x.dcm", pixels, 12)) - ramp(8).astype(int)).max() <= 1


def test_first_frame_of_several(tmp_path: Path) -> None:
    frames = np.stack([ramp(12), np.zeros_like(ramp(12))])
    assert read(write_dicom(tmp_path / "x.dcm", frames, 12)).max() == 255


def test_colour_dicom(tmp_path: Path) -> None:
    pixels = np.repeat(ramp(8).astype(np.uint8)[..., None], 3, axis=-1)
    path = write_dicom(
        tmp_path / "x.dcm", ramp(8).astype(np.uint8), 8, SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation="RGB", PixelData=pixels.tobytes(),
    )  # fmt: skip
    assert np.abs(read(path) - ramp(8).astype(int)).max() <= 1


def test_missing_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "x.dcm", ramp(12), 12, RLELossless)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
    with pytest.raises(ValueError, match=r"x\.dcm: no decoder is installed .* RLE Lossless .* `pip install pylibjpeg"):
        open_radiograph(path)


def broken_files(folder: Path) -> dict[Path, str]:
    """Files that cannot be read, with a word that the reason must hold."""
    Image.fromarray(ramp(8, 64).astype(np.uint8)).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    dicom = write_dicom(folder / "whole.dcm", ramp(12), 12).read_bytes()
    contents = {
        "empty.png": (b"", "zero bytes"),
        "text.jpg": (b"not an image", "not a DICOM"),
        "cut.png": (whole[: len(whole) // 2], "broken or cut short"),
        "cut.dcm": (dicom[:-999], "broken or cut short"),
        "header.dcm": (dicom[:200], "no DICOM pixel data"),
        "text.dcm": (b"not an image at all, but words", "no DICOM pixel data"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a DICOM"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {folder / name: word for name, (_, word) in contents.items()} | {
        folder / "missing.png": "no such file",
        folder: "cannot be opened",
    }


def test_bad_files_are_named_with_the_reason(tmp_path: Path) -> None:
    for path, word in broken_files(tmp_path).items():
        with pytest.raises(ValueError, match=word) as caught:
            open_radiograph(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "Secret" not in str(caught.value)


def test_check_images_finds_those_and_no_other(tmp_path: Path, cache: Path) -> None:
    bad = {str(path.relative_to(tmp_path)): word for path, word in broken_files(tmp_path).items()}
    for _ in range(2):  # looked at, and remembered
        broken = check_images(tmp_path, ["whole.png", *bad, "whole.dcm", "whole.png"], workers=3)
        assert list(broken) == list(bad)
        assert all(word in broken[path] for path, word in bad.items())


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the damage
def test_random_damage_is_a_value_error(tmp_path: Path) -> None:
    """Whatever bytes are changed, a picture comes back or a `ValueError`; never another kind of error."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (24, 24), np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(tmp_path / "a.jpg")
    write_dicom(tmp_path / "a.dcm", ramp(12, 8, 24), 12, RLELossless)
    errors = 0
    for path in [tmp_path / f"a.{suffix}" for suffix in ("png", "jpg", "dcm")]:
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            try:
                open_radiograph(path)
            except ValueError:
                errors += 1
    assert errors > 60


def test_too_many_pixels_are_refused_and_ten_thousand_squared_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 10_000 * 10_000 <= base.MAX_PIXELS
    monkeypatch.setattr(base, "MAX_PIXELS", 63)
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", write_dicom(tmp_path / "x.dcm", ramp(8, 8, 8).astype(np.uint8), 8)):
        with pytest.raises(ValueError, match=r"8 x 8 pixels; between 1 and 63 are read"):
            open_radiograph(path)


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_neither_warns_nor_hides_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # it warns above, and refuses above its double
    assert open_radiograph(tmp_path / "x.png").size == (8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"too many pixels .*64 pixels.* between 1 and 150,000,000 are read"):
        open_radiograph(tmp_path / "x.png")


def test_augmentation_is_random_but_repeatable_and_leaves_its_input_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8))
    before = image.copy()
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.mode == "L" and first.size == image.size and image == before
    assert first == again and first != other


def test_augmentation_never_mirrors() -> None:
    """The heart's side is a finding: a marker left of the middle and above it stays there in every draw."""
    picture = np.zeros((96, 96), np.uint8)
    picture[20:36, 16:32] = 200
    for seed in range(200):
        pixels = np.asarray(augment(Image.fromarray(picture), np.random.default_rng(seed))).astype(float)
        bright = np.argwhere(pixels > 120)
        assert len(bright) and (bright.mean(axis=0) < 48 - 6).all(), f"mirrored with seed {seed}"


def test_augmentation_moves_less_than_a_tenth() -> None:
    """Boxes in pixels of the stored image stay useful, and a zone stays the zone that the report names."""
    for seed in range(200):
        a, b, c, d, e, f = Variation.draw(np.random.default_rng(seed)).affine((100, 100))
        assert a * e - b * d > 0
        corners = np.array([[30, 30, 1], [70, 30, 1], [30, 70, 1], [70, 70, 1]])
        moved = corners @ np.array([[a, d], [b, e], [c, f]])
        assert np.abs(moved - corners[:, :2]).max() < 10


def real(name: str) -> Path:
    path = REAL_DICOM / name
    if not path.exists():
        pytest.skip(f"{name} is not in the shared data")
    return path


def test_real_chest_in_two_compressions() -> None:
    """rg1 as JPEG 2000 and as JPEG-LS, both lossy: MONOCHROME1, 15 bits, window 15000/30000."""
    other = read(real("rg1_chest_pa_jpegls_near.dcm"))
    assert np.abs(read(real("rg1_chest_pa_j2k_lossy.dcm")) - other).mean() < 1


def test_real_chest_is_bright_on_dark() -> None:
    pixels = read(real("rg1_chest_pa_j2k_lossy.dcm"))
    assert pixels.shape == (1955, 1841)
    spine, lung = pixels[600:900, 880:960].mean(), pixels[600:900, 400:600].mean()
    assert spine > lung + 40


def test_real_lossless_equals_uncompressed() -> None:
    lossless = real("rg3_extremity_ap_jpeg_lossless.dcm")
    plain = real("rg3_extremity_ap_uncompressed.dcm")
    assert (read(lossless) == read(plain)).all()


def test_real_jpeg_lossless_and_rle_and_implicit() -> None:
    """A second way to the same pixels: the window by hand on what pydicom decodes."""
    for name in ("rg3_extremity_ap_jpeg_lossless.dcm", "rg2_hip_rle.dcm"):
        dataset = pydicom.dcmread(real(name))
        centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
        expected = np.clip((dataset.pixel_array - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            expected = 255 - expected
        assert np.abs(read(real(name)) - expected).max() <= 1
    name = "nih_chest_dx_implicit_le.dcm"
    assert (read(real(name)) == pydicom.dcmread(real(name)).pixel_array).all()
