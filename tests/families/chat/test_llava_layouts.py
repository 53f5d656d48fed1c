"""LLaVA-1.5 as its authors publish it: no vision tower inside, tokenizer.model alone, bf16 shards; other towers."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import published_layouts as layouts
import pytest
import torch
import transformers as t
from chat_runs import RECIPE

from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.published import assemble, original_config, to_published
from hf_medvlm.models.loading import load_tokenizer

VOCABULARY = Path(__file__).parents[4] / "shared" / "golden" / "llava_preprocess" / "tokenizer_vicuna_like.model"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": t.CLIPVisionConfig(**VISION),
    "siglip": t.SiglipVisionConfig(**VISION),
    "dinov2": t.Dinov2Config(**VISION),
    "registers": t.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4),
    "vit": t.ViTConfig(**VISION),
}
ODD = {"image_mean": [0.53, 0.52, 0.51], "image_std": [0.26, 0.25, 0.24]}
pytestmark = pytest.mark.skipif(not VOCABULARY.is_file(), reason="no golden tokenizer here")


def clip_folder(folder: Path) -> Path:
    """As `openai/clip-vit-large-patch14-336`: both towers, and how its pixels are prepared."""
    text = SIZES | {"vocab_size": 60, "eos_token_id": 59, "bos_token_id": 58}
    t.CLIPModel(t.CLIPConfig(vision_config=VISION, text_config=text)).save_pretrained(folder)
    pixels = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | ODD | {"resample": 3}))
    return folder


def llava_folder(folder: Path, tower: str) -> Path:
    """As `liuhaotian/llava-v1.5-7b`: bf16 .bin shards with an index, a bare tokenizer.model, the tower's name."""
    folder.mkdir(parents=True)
    shutil.copy(VOCABULARY, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "model_max_length": 2048, "pad_token": None}
    settings |= {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = len(load_tokenizer(folder))
    text = SIZES | {"vocab_size": vocabulary, "max_position_embeddings": 2048}
    config = t.LlavaConfig(text_config=t.LlamaConfig(**text), vision_config=TOWERS["clip"])
    weights = {k: v.bfloat16() for k, v in to_published(LlavaReporter(config)).items() if "vision_tower" not in k}
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name].clone() for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    record = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu"}
    record |= {"mm_vision_tower": tower, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    record |= {
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(record | text))
    return folder


def cached(home: Path, name: str) -> Path:
    """A Hub id's files where huggingface_hub keeps what it has fetched."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return clip_folder(repository / "snapshots" / ("0" * 40))


def test_the_published_folder_trains_from_the_cache_alone(cache, tmp_path, monkeypatch, capsys):
    cached(tmp_path / "home", "openai/clip-vit-large-patch14-336")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    folder = llava_folder(tmp_path / "llava-v1.5-7b", "openai/clip-vit-large-patch14-336")
    words = ["--model_name_or_path", str(folder), "--version", "v1", "--bf16", "True"]
    words += "--synthetic_studies 24 --eval_studies 2 --max_steps 2 --per_device_train_batch_size 2".split()
    words += "--model_max_length 900 --max_new_tokens 4 --use_cpu True".split()
    runpy.run_path(str(RECIPE))["main"]([*words, "--output_dir", str(tmp_path / "run")])
    assert "mean 0.53/0.52/0.51, std 0.26/0.25/0.24" in capsys.readouterr().out
    model = t.AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    back = to_published(LlavaReporter.from_pretrained(tmp_path / "run"))  # and back to the original's names
    assert {"model.mm_projector.0.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"} <= back.keys()


def test_a_tower_that_is_nowhere_is_named(tmp_path):
    folder = llava_folder(tmp_path / "llava", "openai/clip-vit-large-patch14-336")
    with pytest.raises(ValueError, match="hf download openai/clip-vit-large-patch14-336.*--vision_tower"):
        LlavaReporter.from_published(folder)
    tower = clip_folder(tmp_path / "clip-vit-large-patch14-336")  # beside it
    model = LlavaReporter.from_published(folder)
    stock = t.CLIPVisionModel.from_pretrained(tower)
    for key, value in stock.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[key], value)


@pytest.mark.parametrize("name", TOWERS)
def test_any_tower_of_patches_makes_a_llava(name, tmp_path):
    tower, language = tmp_path / "tower", tmp_path / "language"
    stock = t.AutoModel.from_config(TOWERS[name])
    stock.save_pretrained(tower)
    t.LlamaForCausalLM(t.LlamaConfig(**SIZES, vocab_size=70)).save_pretrained(language)
    model = assemble(LlavaReporter, language, tower).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        states = stock.eval()(pixels, output_hidden_states=True).hidden_states[-2]
        read = states[:, 1:] if model.config.vision_feature_select_strategy == "default" else states
        expected = model.model.multi_modal_projector(read)[0]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert len(features) == model.image_tokens
    ids = torch.tensor([[1, *[model.config.image_token_id] * model.image_tokens, 5, 6, 7]])
    model.train()
    model(
        input_ids=ids, pixel_values=pixels, labels=ids.masked_fill(ids == model.config.image_token_id, -100)
    ).loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_a_tower_without_rows_of_patches_is_refused(tmp_path):
    t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a resnet; LLaVA reads the patches .* clip_vision_model, siglip_vision_model"):
        original_config(t.LlavaConfig, {"model_type": "llava", "mm_projector_type": "mlp2x_gelu"}, {}, tmp_path)


def test_llava_rad_names_its_tower_and_takes_it_once_it_is_a_vit(tmp_path):
    """BiomedCLIP-CXR in open_clip's layout: the last block but one, no final norm, no class token."""
    from hf_medvlm import DualEncoderModel

    folder = llava_folder(tmp_path / "llava-rad", "biomedclip_cxr_518")
    with pytest.raises(ValueError, match="biomedclip_cxr_518 is published in open_clip's layout.*--vision_tower NEW"):
        LlavaReporter.from_published(folder)
    published = DualEncoderModel.from_published(layouts.biomedclip(tmp_path / "biomedclip"))
    published.vision_tower.save_pretrained(tmp_path / "vit")
    record = json.loads((folder / "config.json").read_text()) | {"mm_hidden_size": 192}
    (folder / "config.json").write_text(json.dumps(record))
    for file in sorted(folder.glob("*.bin")):
        weights = torch.load(file, weights_only=True)
        if "model.mm_projector.0.weight" in weights:
            torch.save(weights | {"model.mm_projector.0.weight": torch.randn(32, 192).bfloat16()}, file)
    model = LlavaReporter.from_published(folder, vision_tower=tmp_path / "vit").eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        states = published.eval().vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        expected = model.model.multi_modal_projector(states[:, 1:])[0]
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"mm_projector_type": "TAC"}, {"model_type": "libra_llama"}])
def test_libra_is_refused_by_name(change, tmp_path):
    record = {"model_type": "llava", "mm_projector_type": "mlp2x_gelu"} | change
    with pytest.raises(ValueError, match="is Libra, whose connector.*--prior"):
        original_config(t.LlavaConfig, record, {}, clip_folder(tmp_path))
