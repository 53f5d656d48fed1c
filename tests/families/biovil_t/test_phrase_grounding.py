"""Preprocessing and heat maps of BioViL-T against hi-ml-multimodal's, and what they refuse."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.families.biovil_t.phrase_grounding import similarity_map, to_image_size
from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor, remap_to_uint8


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "biovil_t"
    if not folder.is_dir():
        pytest.skip("no golden outputs of BioViL-T")
    return folder


def test_maps_equal_the_reference(golden):
    wanted = load_file(golden / "grounding.safetensors")
    patches, text = wanted["patch_embeddings_hwd"], wanted["text_embedding"]
    torch.testing.assert_close(similarity_map(patches, text, sigma=0), wanted["similarity_raw"], atol=1e-6, rtol=0)
    smooth = similarity_map(patches, text)
    torch.testing.assert_close(smooth, wanted["similarity_smoothed_sigma1.5"], atol=1e-6, rtol=0)
    checked = 0
    for name, value in wanted.items():
        if match := re.fullmatch(r"heatmap_w(\d+)_h(\d+)_(\w+)_resize(\w+)_crop(\w+)", name):
            width, height, mode, resize, crop = match.groups()
            sizes = [None if size == "None" else int(size) for size in (resize, crop)]
            ours = torch.from_numpy(to_image_size(smooth, int(width), int(height), *sizes, interpolation=mode))
            torch.testing.assert_close(ours, value, atol=1e-6, rtol=0, equal_nan=True)
            checked += 1
    assert checked == 12


def test_pixels_equal_the_reference(golden):
    tensors = load_file(golden / "preprocess.safetensors")
    for name in "abc":
        pixels = tensors[f"{name}.input"].numpy()
        grey = Image.fromarray(remap_to_uint8(pixels)).convert("L")
        assert np.array_equal(np.asarray(grey), tensors[f"{name}.remapped_L"])
        for crop in (448, 480):
            wanted = tensors.get(f"{name}.resize512_crop{crop}_u8")
            if wanted is not None:
                prepared = BioViLTImageProcessor(crop_size=crop)(pixels, return_tensors="pt").pixel_values
                assert prepared.shape == (1, 3, crop, crop)
                assert torch.equal((prepared[0] * 255).round(), wanted.float().expand(3, -1, -1))


def test_an_odd_margin_is_halved_as_torchvision_does():
    """round(1.5) is 2, where half rounded down would be 1; round(0.5) is 0."""
    for width, left in ((7, 2), (5, 0)):
        pixels = np.zeros((4, width))
        pixels[:, left] = 1
        prepared = BioViLTImageProcessor(resize_size=4, crop_size=4)(pixels, return_tensors="np").pixel_values
        assert prepared[0, 0, 0].tolist() == [1, 0, 0, 0]


def test_constant_images_and_several_at_once():
    images = [Image.new("L", (9, 12), 77), Image.new("RGB", (12, 9), (1, 2, 3)), np.full((8, 8), -4.0)]
    prepared = BioViLTImageProcessor(8, 6)(images, return_tensors="pt").pixel_values
    assert prepared.shape == (3, 3, 6, 6)
    assert prepared[0].abs().max() == 0 and prepared[2].abs().max() == 0


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="got 449 and 448"):
        BioViLTImageProcessor(448, 449)
    with pytest.raises(ValueError, match="a crop of 20 pixels is larger than the image of 16 x 30"):
        to_image_size(torch.zeros(4, 4), 16, 30, crop_size=20)


def test_dicom_chests_go_through(shared):
    folder = shared / "data" / "dicom"
    if not folder.is_dir():
        pytest.skip("no DICOM files")
    names = ("nih_chest_dx_implicit_le.dcm", "rg1_chest_pa_j2k_lossy.dcm")
    prepared = BioViLTImageProcessor()(
        [open_radiograph(folder / name) for name in names], return_tensors="pt"
    ).pixel_values
    assert prepared.shape == (2, 3, 448, 448)
    assert prepared.amin() >= 0 and 0.9 < prepared.amax() <= 1
