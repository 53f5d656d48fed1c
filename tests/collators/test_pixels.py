"""Shrinking first gives the processor's own pixels; variations are the same one by one, in batches and on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

from hf_medvlm.collators.augmentation import as_tensor, finish_batch, vary
from hf_medvlm.collators.geometry import Preparation
from hf_medvlm.collators.pixels import Unfinished, read_pixels
from hf_medvlm.data.images.augment import Variation, augment, white_noise
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor
from hf_medvlm.families.dual_encoder.processor import OpenClipImageProcessor

SQUARE = {"height": 64, "width": 48}
PROCESSORS = {
    "blip": BlipImageProcessorPil(size=SQUARE),
    "vit": ViTImageProcessorPil(size=SQUARE),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
    "clip cut": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 49, "width": 53}),
    "open_clip": OpenClipImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
    "biovil_t": BioViLTImageProcessor(resize_size=70, crop_size=59),
}


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 8), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = 0.8 * np.asarray(coarse) + rng.normal(20, 5, (height, width))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(211, 173), (173, 211), (64, 48), (40, 90), (633, 517)]):
        picture(number, *size).save(path / f"{number}.png")
        picture(number, *size).save(path / f"{number}.jpg", quality=95)
    return path


def rows(suffix: str, count: int = 5) -> list[tuple[Row, StudyImage]]:
    images = [StudyImage(f"{number}.{suffix}") for number in range(count)]
    return [(Row(Study(f"s{n}", f"p{n}", images=(image,)), n, epoch=3), image) for n, image in enumerate(images)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processors_own_to_the_bit(name: str, folder: Path) -> None:
    processor = PROCESSORS[name]
    assert Preparation.of(processor) is not None
    pixels = read_pixels(rows("png"), folder, processor, False, 0)["pixel_values"]
    whole = [Image.open(folder / image.path).convert("RGB") for _, image in rows("png")]
    assert torch.equal(pixels, processor(whole, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("name", ["blip", "clip"])
def test_a_jpeg_decoded_small_is_within_the_tolerance(name: str, folder: Path) -> None:
    processor = PROCESSORS[name]
    pixels = read_pixels(rows("jpg"), folder, processor, False, 0)["pixel_values"]
    whole = [Image.open(folder / image.path).convert("RGB") for _, image in rows("jpg")]
    level = float(np.diff(Preparation.of(processor).table[0]).mean())
    difference = (pixels - processor(whole, return_tensors="pt").pixel_values).abs() / level
    assert difference[2].max() == 0  # nothing was to be left out of a picture of that size
    assert difference.mean() < 1 and difference.quantile(0.99) < 8
    small = read_pixels(rows("jpg")[4:], folder, processor, True, 0)["pixel_values"]
    assert small.shape == pixels[4:].shape


def test_a_processor_that_does_something_else_is_asked_itself(folder: Path) -> None:
    class Mirrored(CLIPImageProcessorPil):
        def center_crop(self, image, size, **kwargs):
            return super().center_crop(image, size, **kwargs)[..., ::-1]

    processor = Mirrored(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    assert Preparation.of(processor) is None
    pixels = read_pixels(rows("png"), folder, processor, False, 0)["pixel_values"]
    whole = [Image.open(folder / image.path).convert("RGB") for _, image in rows("png")]
    assert torch.equal(pixels, processor(whole, return_tensors="pt").pixel_values)
    assert read_pixels(rows("png"), folder, processor, True, 0)["pixel_values"].shape == pixels.shape


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("training", [False, True])
def test_finished_elsewhere_the_pixels_are_the_same(name: str, training: bool, folder: Path) -> None:
    here = read_pixels(rows("png"), folder, PROCESSORS[name], training, 7)["pixel_values"]

    def collate(items: list) -> dict[str, torch.Tensor]:
        return read_pixels(items, folder, PROCESSORS[name], training, 7)

    sent = Unfinished(collate)(rows("png"))
    assert sent["pixel_values"].dtype == torch.uint8 and sent["pixel_values"].shape[1] == 1
    finished = finish_batch(sent)
    assert set(finished) == {"pixel_values"}
    level = np.diff(Preparation.of(PROCESSORS[name]).table[0]).mean()
    difference = (finished["pixel_values"] - here).abs() / float(level)
    if not training:
        assert difference.max() == 0
    # Pillow's affine works in fixed point, and ends a picture at its last pixel where a device fades to black
    assert difference.median() < 1.01 and (difference > 4).float().mean() < 0.06


def test_a_variation_is_the_same_alone_and_in_a_batch() -> None:
    smooth = [picture(seed, 24, 20).resize((96, 80), Image.BICUBIC) for seed in range(4)]
    drawn = [Variation.draw(np.random.default_rng(seed)) for seed in range(4)]
    grey = torch.from_numpy(np.stack([np.asarray(each) for each in smooth]))[:, None]
    batch = vary(grey, as_tensor(drawn, 0))
    for each, one, image in zip(batch, drawn, smooth, strict=True):
        assert torch.equal(vary(torch.from_numpy(np.asarray(image).copy())[None, None], as_tensor([one], 0))[0], each)
        inside = np.abs(each[0].numpy().astype(int) - one.apply(image))[12:-12, 12:-12]
        assert inside.mean() < 1 and inside.max() <= 4


def test_what_is_cut_off_comes_back_in() -> None:
    """A picture that goes on behind the crop is never black at the rim."""
    wide = Image.new("L", (140, 140), 200)
    for seed in range(50):
        drawn = Variation.draw(np.random.default_rng(seed))._replace(noise=0, gamma=1, contrast=1, brightness=0)
        assert drawn.apply(wide, margin=20).min() == 200
        grey = torch.full((1, 1, 140, 140), 200, dtype=torch.uint8)
        assert vary(grey, as_tensor([drawn], 20)).min() == 200


def test_noise_is_white() -> None:
    values = white_noise(100_000, 5)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(values, white_noise(100_000, 6))[0, 1]) < 0.02
    flat = torch.full((2, 1, 40, 40), 128, dtype=torch.uint8)
    still = Variation(0, 1, 0, 0, 1, 1, 0, 20, 5)
    varied = vary(flat, as_tensor([still, still._replace(seed=6)], 0))[:, 0].numpy()
    for place, seed in enumerate((5, 6)):
        expected = np.clip(np.rint(128 + 20 * white_noise(1600, seed)), 0, 255).reshape(40, 40)
        assert np.abs(varied[place] - expected).max() <= 1


def test_variations_depend_on_study_epoch_and_seed_alone(folder: Path) -> None:
    processor = PROCESSORS["blip"]
    all_of_them = read_pixels(rows("png"), folder, processor, True, 7)["pixel_values"]
    backwards = read_pixels(rows("png")[::-1], folder, processor, True, 7)["pixel_values"]
    assert torch.equal(all_of_them, backwards.flip(0))
    assert not torch.equal(all_of_them, read_pixels(rows("png"), folder, processor, True, 8)["pixel_values"])
    image = Image.open(folder / "0.png")
    assert augment(image, np.random.default_rng(1)) == augment(image, np.random.default_rng(1))
