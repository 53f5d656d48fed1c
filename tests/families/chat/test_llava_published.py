"""Original and llava-hf checkpoints: logits of the reference, every key there and back, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.published import VISION, assemble, load_projector, rename, to_published
from hf_medvlm.labels import IMAGE_TOKEN_INDEX

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rope_theta": 500000.0,
}
VISION_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
ORIGINAL = {**TEXT, "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "openai/clip"}


def reporter() -> LlavaReporter:
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION_CONFIG},
        image_token_index=50,
    )
    return LlavaReporter(config).eval()


def write(folder: Path, weights: dict, config: dict = ORIGINAL, shards: int = 2, suffix: str = "bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for shard in range(shards):
        part = {
            key: value.contiguous() for place, (key, value) in enumerate(weights.items()) if place % shards == shard
        }
        if suffix == "bin":
            torch.save(part, folder / f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin")
        else:
            save_file(part, folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors")
    return folder


def logits(model: LlavaForConditionalGeneration) -> torch.Tensor:
    torch.manual_seed(1)
    ids = torch.tensor([[1, 7, *[50] * 4, 9, 3, 2]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=torch.randn(1, 3, 8, 8)).logits


@pytest.fixture(scope="module")
def golden_fill():
    if not (GOLDEN / "llava_model").is_dir():
        pytest.skip("no golden files here")
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "golden_fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_logits_and_loss_are_those_of_the_reference(golden_fill, tmp_path):
    recorded = json.loads((GOLDEN / "llava_model" / "keys_tiny.json").read_text())
    expected = load_file(GOLDEN / "llava_model" / "expected.safetensors")
    weights = golden_fill.fill_state_dict(recorded["keys"])
    config = {key: value for key, value in recorded.items() if key.startswith("mm_")} | {"model_type": "llava_llama"}
    folder = write(tmp_path, weights, config | recorded["text_config"] | {"vision_config": recorded["vision_config"]})
    model = LlavaReporter.from_published(folder)
    rows = []
    for row, name in enumerate(recorded["batch"]):
        length = int(expected["attention_mask"][row].sum())
        ids, labels = [], []
        for token, label in zip(expected["input_ids"][row, :length], expected["labels"][row, :length], strict=True):
            times = recorded["num_patches"] if token == IMAGE_TOKEN_INDEX else 1
            ids += [model.config.image_token_id if token == IMAGE_TOKEN_INDEX else int(token)] * times
            labels += [int(label)] * times
        rows.append((ids, labels))
        image = expected["pixel_values"][row : row + 1]
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), pixel_values=image, labels=torch.tensor([labels]))
        torch.testing.assert_close(output.logits[0], expected[f"logits_{name}"], rtol=0, atol=5e-5)
        assert output.loss.item() == pytest.approx(recorded["per_sample_loss"][row], abs=1e-5)
    width = max(len(ids) for ids, _ in rows)
    with torch.no_grad():
        batch = model(
            input_ids=torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
            labels=torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            pixel_values=expected["pixel_values"],
        )
    assert batch.loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    back = to_published(model)
    assert set(back) == set(weights) and all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_there_and_back_with_the_tower_inside_or_beside(suffix, tmp_path):
    model = reporter()
    weights = to_published(model)
    inside = LlavaReporter.from_published(write(tmp_path / "inside", weights, suffix=suffix))
    torch.testing.assert_close(logits(inside), logits(model), rtol=0, atol=0)
    clip = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))
    tower = {f"vision_model.{key.removeprefix(VISION)}": v for key, v in weights.items() if key.startswith(VISION)}
    write(tmp_path / "clip", tower, clip.config.to_dict(), 1, "safetensors")
    rest = {key: value for key, value in weights.items() if not key.startswith(VISION)}
    beside = write(tmp_path / "beside", rest, ORIGINAL | {"mm_vision_tower": "clip"}, suffix=suffix)
    torch.testing.assert_close(logits(LlavaReporter.from_published(beside)), logits(model), rtol=0, atol=0)
    write(tmp_path / "nowhere", rest, ORIGINAL | {"mm_vision_tower": "elsewhere"}, suffix=suffix)
    with pytest.raises(ValueError, match="--vision_tower"):
        LlavaReporter.from_published(tmp_path / "nowhere")
    loaded = LlavaReporter.from_published(tmp_path / "nowhere", vision_tower=tmp_path / "clip")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_a_llava_hf_folder_with_names_of_transformers_4(tmp_path):
    model = reporter()
    names = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    old = {
        next(theirs + key.removeprefix(ours) for ours, theirs in names.items() if key.startswith(ours)): value
        for key, value in model.state_dict().items()
    }
    config = LlavaConfig(
        text_config=model.config.text_config.to_dict(), vision_config=model.config.vision_config.to_dict()
    )
    folder = write(tmp_path, old, config.to_dict() | {"image_token_index": 50}, 1, "safetensors")
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    loaded = LlavaReporter.from_published(folder)
    assert type(loaded.config) is LlavaConfig
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "ours")
    saved = set(load_file(tmp_path / "ours" / "model.safetensors"))
    plain, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()) and "language_model.lm_head.weight" in saved
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    plain.save_pretrained(tmp_path / "plain")
    assert saved == set(load_file(tmp_path / "plain" / "model.safetensors"))


def test_assembled_from_a_language_model_and_a_clip(tmp_path):
    torch.manual_seed(0)
    language = LlamaForCausalLM(LlamaConfig(**TEXT))
    language.save_pretrained(tmp_path / "vicuna")
    clip = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))
    weights = {f"vision_model.{key}": value for key, value in clip.state_dict().items()}
    write(tmp_path / "clip", weights, clip.config.to_dict(), 1, "safetensors")
    model = assemble(LlavaReporter, tmp_path / "vicuna", tmp_path / "clip")
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, language(input_ids=ids).logits)
    for key, value in clip.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[key], value)
    stage_1 = {key: torch.ones_like(v) for key, v in to_published(model).items() if "mm_projector" in key}
    torch.save(stage_1, tmp_path / "mm_projector.bin")
    load_projector(model, tmp_path / "mm_projector.bin")
    assert all(bool((p == 1).all()) for p in model.model.multi_modal_projector.parameters())
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="other.bin does not fit"):
        load_projector(model, tmp_path / "other.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is no LLaVA"),
        ({"mm_projector_type": "linear"}, "'linear' is not supported"),
        ({"mm_use_im_start_end": True}, "no tokens around an image"),
    ],
)
def test_other_configs_are_refused(change, message, tmp_path):
    folder = write(tmp_path, to_published(reporter()), ORIGINAL | change)
    with pytest.raises(ValueError, match=message):
        LlavaReporter.from_published(folder)


def test_missing_unexpected_and_broken_files_are_refused(tmp_path):
    weights = to_published(reporter())
    missing = {key: value for key, value in weights.items() if "lm_head" not in key}
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        LlavaReporter.from_published(write(tmp_path / "a", missing))
    with pytest.raises(ValueError, match="1 unexpected: stray"):
        LlavaReporter.from_published(write(tmp_path / "b", weights | {"stray": torch.ones(1)}))
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    LlavaReporter.from_published(write(tmp_path / "c", weights | stray))
    (tmp_path / "a" / "config.json").write_text('{"model_type": ,}')
    with pytest.raises(ValueError, match="config.json:1: not JSON at column 16"):
        LlavaReporter.from_published(tmp_path / "a")
    with pytest.raises(ValueError, match="no config.json"):
        LlavaReporter.from_published(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text(json.dumps(ORIGINAL))
    with pytest.raises(ValueError, match="no weights in it"):
        LlavaReporter.from_published(tmp_path / "d")


def test_the_published_7b_by_shapes_alone():
    with torch.device("meta"):
        model = LlavaReporter(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32000}))
    shapes = {key: tuple(value.shape) for key, value in to_published(model).items()}
    assert (
        sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel() == 6_738_415_616
    )
    assert shapes["model.mm_projector.0.weight"] == (4096, 1024) and shapes["model.mm_projector.2.weight"] == (
        4096,
        4096,
    )
    assert shapes[VISION + "embeddings.position_embedding.weight"] == (577, 1024)
    assert sum(value.numel() for value in model.parameters()) == 7_062_902_784
    assert model.image_tokens == 576
    assert all(rename(key) in model.state_dict() for key in shapes)
