"""Prepared pictures: those of the files to the bit, never stale, never half-trusted."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian
from transformers import CLIPImageProcessorPil

from hf_medvlm.collators.geometry import Preparation
from hf_medvlm.collators.pixels import Unfinished, read_pixels
from hf_medvlm.data import cache_building, verification
from hf_medvlm.data.cache import (
    Again,
    ImageCache,
    LongestSide,
    general_cache,
    make_picture,
    pictures_folder,
    read_index,
)
from hf_medvlm.data.cache_building import build_cache
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.prepare_options import parse_options
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.data.verification import check_images

SQUARE = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
CROPPED = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
NAMES = ["a/0.jpg", "a/1.png", "2.dcm", "3.jpg", "4.png"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five files of three kinds and of several shapes, an hour old."""
    monkeypatch.setenv("HF_MEDVLM_CACHE", str(tmp_path / "known"))
    made = tmp_path / "images"
    (made / "a").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        write(made / name, number)
    return made


def write(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 235, (9, 7), dtype=np.uint8))
    picture = coarse.resize((150 + 40 * seed, 190), Image.Resampling.BICUBIC)
    if path.suffix == ".dcm":
        from pydicom.dataset import Dataset, FileMetaDataset

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
        dataset.Columns, dataset.Rows = picture.size
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME1", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelData = (np.asarray(picture).astype("<u2") * 16).tobytes()
        dataset.save_as(path, enforce_file_format=True)
    else:
        picture.save(path)
    time = path.stat().st_mtime_ns - (3600 - seed) * 10**9
    os.utime(path, ns=(time, time))


def rows() -> list[tuple[Row, StudyImage]]:
    images = [StudyImage(name) for name in NAMES]
    return [(Row(Study(f"s{n}", f"p{n}", images=(image,)), n, 3), image) for n, image in enumerate(images)]


@pytest.mark.parametrize("processor", [SQUARE, CROPPED])
def test_pixels_are_those_of_the_files_to_the_bit(
    folder: Path, tmp_path: Path, processor: CLIPImageProcessorPil
) -> None:
    how = Preparation.of(processor)
    assert how is not None
    built = build_cache(tmp_path / "cache", folder, NAMES, how, workers=2)
    assert (built.pictures, built.new, built.broken) == (5, 5, {})
    cache = ImageCache(tmp_path / "cache", folder, how)
    assert all(cache.stored(name) is not None for name in NAMES) and sorted(cache) == sorted(NAMES)
    for source in (cache, pickle.loads(pickle.dumps(cache))):  # as workers that are not forked get it
        for training in (False, True):
            ours = read_pixels(rows(), source, processor, training, seed=1)["pixel_values"]
            assert np.array_equal(ours, read_pixels(rows(), folder, processor, training, seed=1)["pixel_values"])
    sent = Unfinished(lambda items: read_pixels(items, cache, processor, True, 1))(rows())
    assert str(sent["pixel_values"].dtype) == "torch.uint8"
    again = build_cache(tmp_path / "cache", folder, [*NAMES, NAMES[0]], how)
    assert (again.pictures, again.new) == (5, 0)


def test_a_file_that_changed_is_prepared_again_and_no_other(folder: Path, tmp_path: Path) -> None:
    how = LongestSide(64)
    build_cache(tmp_path, folder, NAMES[:4], how)
    write(folder / NAMES[0], 9)
    built = build_cache(tmp_path, folder, NAMES, how)
    assert (built.pictures, built.new) == (5, 2)
    cache = ImageCache(tmp_path, folder, how)
    for name in NAMES:
        assert np.array_equal(cache[name], how.resize(open_radiograph(folder / name, how.enough)))
    assert cache[NAMES[0]].size == (64, round(190 * 64 / 510))


def test_another_folder_with_the_same_names_has_its_own_pictures(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    write(other / NAMES[0], 7)
    how = LongestSide(64)
    build_cache(tmp_path / "c", folder, NAMES, how)
    build_cache(tmp_path / "c", other, NAMES[:1], how)
    first, second = (ImageCache(tmp_path / "c", each, how) for each in (folder, other))
    assert first[NAMES[0]].size != second[NAMES[0]].size and len(second) == 1


def test_smaller_pictures_are_made_of_larger_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert general_cache(tmp_path, folder) is None
    build_cache(tmp_path, folder, NAMES, LongestSide(128))
    assert general_cache(tmp_path, folder) == LongestSide(128)
    way = Preparation.of(SQUARE)
    assert way is not None
    how = Again(way, ImageCache(tmp_path, folder, LongestSide(128)))
    with monkeypatch.context() as patch:
        patch.setattr("hf_medvlm.data.cache.open_radiograph", None)  # no file is opened
        assert build_cache(tmp_path, folder, NAMES, how, workers=1).new == 5
        ours = read_pixels(rows(), ImageCache(tmp_path, folder, how), SQUARE, False, 0)["pixel_values"]
    exact = read_pixels(rows(), folder, SQUARE, False, 0)["pixel_values"]
    assert float((ours - exact).abs().mean()) < 0.05 and not np.array_equal(ours, exact)
    least = LongestSide(
        32
    )  # some JPEG is decoded small for it; a picture that its cache lost is made of the file alike
    build_cache(tmp_path, folder, NAMES, least, workers=1)
    there, lost = (Again(way, ImageCache(cache, folder, least)) for cache in (tmp_path, tmp_path / "lost"))
    assert any("full_size" in open_radiograph(folder / name, least.enough).info for name in NAMES)
    for name in NAMES:
        assert np.array_equal(make_picture(folder, name, there), make_picture(folder, name, lost))


def test_broken_images_are_named_and_what_was_decoded_counts_as_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cut.png").write_bytes((folder / NAMES[1]).read_bytes()[:300])
    Image.new("L", (40, 40), 7).save(folder / "grey.png")
    names = [*NAMES, "cut.png", "grey.png", "gone.png"]
    for name in ("cut.png", "grey.png"):
        os.utime(folder / name, ns=(10**18, 10**18 + 1))
    built = build_cache(tmp_path, folder, names, LongestSide(64), workers=1)
    assert built.new == 5 and list(built.broken) == ["cut.png", "grey.png", "gone.png"]
    decoded: list[Path] = []
    monkeypatch.setattr(verification, "why_unusable", lambda path: decoded.append(path) or "there is no such file")
    assert check_images(folder, names) == built.broken
    assert [path.name for path in decoded] == ["gone.png"]


def test_a_full_disk_leaves_whole_shards_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_building, "BATCH", 1)
    monkeypatch.setattr(cache_building, "SHARD", 2)
    how, real = LongestSide(64), cache_building._record
    written: list[int] = []

    def full_after_three(made: list) -> object:
        written.append(1)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(made)

    with monkeypatch.context() as patch:
        patch.setattr(cache_building, "_record", full_after_three)
        with pytest.raises(OSError, match=r"No space left on device; .* GB are free .* make room and start again"):
            build_cache(tmp_path, folder, NAMES, how, workers=1)
    pictures = pictures_folder(tmp_path, folder, how)
    assert len(read_index(pictures)) == 0 and len(list(pictures.iterdir())) == 1  # one whole shard, no half one
    monkeypatch.setattr("hf_medvlm.data.cache.BATCH", 1)
    built = build_cache(tmp_path, folder, NAMES, how, workers=1)
    assert (built.pictures, built.new) == (5, 3)
    cache = ImageCache(tmp_path, folder, how)
    for name in NAMES:
        assert np.array_equal(cache.stored(name), how.resize(open_radiograph(folder / name, how.enough)))


def test_damage_is_noticed_and_mended(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    how = LongestSide(64)
    build_cache(tmp_path, folder, NAMES, how, workers=1)
    right = {name: np.array(ImageCache(tmp_path, folder, how)[name]) for name in NAMES}
    (shard,) = pictures_folder(tmp_path, folder, how).glob("pictures-*.arrow")
    content = bytearray(shard.read_bytes())
    stored = ImageCache(tmp_path, folder, how).stored(NAMES[3])
    assert stored is not None
    at = content.index(stored.tobytes())
    content[at + 50] ^= 255
    shard.write_bytes(content)
    cache = ImageCache(tmp_path, folder, how)
    assert cache.stored(NAMES[3]) is None and NAMES[3] in caplog.text  # one flipped byte, one picture
    assert cache.stored(NAMES[0]) is not None and all(np.array_equal(cache[name], right[name]) for name in NAMES)
    shard.write_bytes(content[: len(content) // 2])
    cache = ImageCache(tmp_path, folder, how)
    assert cache.stored(NAMES[0]) is None and all(np.array_equal(cache[name], right[name]) for name in NAMES)
    assert build_cache(tmp_path, folder, NAMES, how, workers=1).new == 5
    assert ImageCache(tmp_path, folder, how).stored(NAMES[0]) is not None


def test_a_lost_index_is_made_of_the_shards(folder: Path, tmp_path: Path) -> None:
    how = LongestSide(64)
    build_cache(tmp_path, folder, NAMES, how)
    (pictures_folder(tmp_path, folder, how) / "index.arrow").unlink()
    assert ImageCache(tmp_path, folder, how).stored(NAMES[0]) is None
    write(folder / NAMES[1], 8)
    assert build_cache(tmp_path, folder, NAMES, how).new == 1
    assert ImageCache(tmp_path, folder, how).stored(NAMES[0]) is not None


@pytest.mark.parametrize("options", [["--convert", "png"], ["--size", "8"]])
def test_options_that_cannot_be(tmp_path: Path, options: list[str]) -> None:
    common = ["roco", "--root", str(tmp_path), "--out", str(tmp_path / "m.jsonl"), "--cache", str(tmp_path / "c")]
    with pytest.raises(ValueError, match="--cache"):
        parse_options([*common, *options])
