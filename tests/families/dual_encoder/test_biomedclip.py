"""BiomedCLIP's published layout in and out, against open_clip's own outputs."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig, DualEncoderModel
from hf_medvlm.families.dual_encoder.processor import OpenClipImageProcessor
from hf_medvlm.families.dual_encoder.published import IGNORABLE, from_published_keys, to_published

SHARED = Path(__file__).parents[4] / "shared" / "golden"
GOLDEN = SHARED / "biomedclip"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not here")


def fill(keys: list) -> dict[str, torch.Tensor]:
    return runpy.run_path(str(SHARED / "golden_fill.py"))["fill_state_dict"](keys)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return fill(json.loads((GOLDEN / "keys_tiny.json").read_text())["keys"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, published) -> Path:
    folder = tmp_path_factory.mktemp("published")
    sizes = json.loads((GOLDEN / "keys_tiny.json").read_text())
    BertConfig(**sizes["text"]).save_pretrained(folder / "bert")
    vision = {"timm_model_name": "test_vit", "image_size": 160}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"hf_model_name": "bert", "context_length": 24}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    torch.save(published, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> DualEncoderModel:
    return DualEncoderModel.from_published(folder).eval()


@torch.no_grad()
def test_features_and_logits_equal_open_clips(model):
    expected = load_file(GOLDEN / "expected_tiny.safetensors")
    mean, std = (torch.tensor(getattr(OpenClipImageProcessor, f"image_{name}")) for name in ("mean", "std"))
    pixels = (expected["pixel_u8"].float() / 255 - mean[:, None, None]) / std[:, None, None]
    image, text = model.get_image_features(pixels), model.get_text_features(expected["input_ids"])
    torch.testing.assert_close(image, expected["image_features"], atol=2e-5, rtol=0)
    torch.testing.assert_close(text, expected["text_features"], atol=2e-5, rtol=0)
    output = model(pixels, expected["input_ids"])
    torch.testing.assert_close(output.logits_per_image, expected["logits_per_image"], atol=2e-4, rtol=0)
    torch.testing.assert_close(output.image_embeds, expected["image_features_normalized"], atol=2e-5, rtol=0)
    masked = model.get_text_features(expected["input_ids"], (expected["input_ids"] != 0).long())
    assert torch.equal(masked, text)


def test_the_layer_norms_are_timms(model):
    assert model.config.vision_config.layer_norm_eps == 1e-6
    assert model.config.text_config.layer_norm_eps == 1e-12
    assert (model.config.vision_config.image_size, model.config.vision_config.num_attention_heads) == (160, 2)


def test_the_way_back_gives_the_same_tensors(model, published):
    back = to_published(model)
    assert back.keys() == {key for key in published if not key.endswith("position_ids")}
    assert all(torch.equal(back[key], published[key]) for key in back)


def test_safetensors_load_as_well(folder, published, tmp_path, model):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    (tmp_path / "bert").symlink_to(folder / "bert")
    save_file({key: value.contiguous() for key, value in published.items()}, tmp_path / "open_clip_model.safetensors")
    again = DualEncoderModel.from_published(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_full_models_keys_all_fit():
    keys = json.loads((GOLDEN / "keys_full.json").read_text())["keys"]
    published = {key: torch.empty(shape, device="meta") for key, shape, _ in keys}
    with torch.device("meta"):
        full = DualEncoderModel(DualEncoderConfig(text_projection="mlp"))
    theirs = {key: tuple(value.shape) for key, value in from_published_keys(published).items()}
    theirs = {key: shape for key, shape in theirs.items() if key not in IGNORABLE}
    assert theirs == {key: tuple(value.shape) for key, value in full.state_dict().items()}


def test_weights_that_do_not_fit_are_listed(folder, published, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    (tmp_path / "bert").symlink_to(folder / "bert")
    broken = {key: value for key, value in published.items() if key != "visual.trunk.norm.weight"}
    broken["visual.trunk.surplus"] = torch.zeros(1)
    torch.save(broken, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="1 missing: vision_tower.layernorm.weight") as error:
        DualEncoderModel.from_published(tmp_path)
    assert "1 unexpected: visual.trunk.surplus" in str(error.value)


def test_another_familys_folder_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="not an open_clip folder"):
        DualEncoderModel.from_published(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    other = {"module.res_features.0.weight": torch.ones(1), "module.disease_embedding_layer.weight": torch.ones(1)}
    torch.save(other, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="a MedKLIP checkpoint, not BiomedCLIP"):
        DualEncoderModel.from_published(tmp_path)


@pytest.mark.parametrize("name", ["landscape", "portrait", "small"])
def test_preprocessing_is_open_clips_to_the_pixel(name):
    arrays = load_file(GOLDEN / "preprocess.safetensors")
    image = Image.fromarray(arrays[f"{name}.input"].numpy())
    processor = OpenClipImageProcessor()
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[0]
    assert torch.equal(raw.to(torch.uint8), arrays[f"{name}.crop_u8"])
    pixels = processor(image, return_tensors="pt").pixel_values
    summary = torch.stack([pixels.mean(), pixels.std(), pixels.min(), pixels.max()])
    torch.testing.assert_close(summary, arrays[f"{name}.pixel_values_mean_std_min_max"], atol=1e-5, rtol=1e-5)
