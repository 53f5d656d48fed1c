"""Every encoder of the documents, in its published layout: strict loading, its own features and pixels, training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.dual_encoder.published import save_published, to_published
from hf_medvlm.families.dual_encoder.recipe import PairArguments, load_dual_encoder
from hf_medvlm.models.encoding import IMAGE_INPUTS, encode_image, encode_text
from hf_medvlm.models.loading import load_processor, load_strictly
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.models.towers import load_tower

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PIXELS = SMALL | {"image_size": 32, "patch_size": 8}
ODD = {"image_mean": [0.53, 0.52, 0.51], "image_std": [0.26, 0.25, 0.24]}  # nobody's: read from the folder or wrong
SQUARE = {"size": {"height": 32, "width": 32}}
CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}

# name -> (config, image processor's settings)
VISION = {
    "vit": (t.ViTConfig(**PIXELS), ("ViTImageProcessor", SQUARE)),
    "dinov2": (t.Dinov2Config(**PIXELS), ("BitImageProcessor", CROP)),
    "registers": (t.Dinov2WithRegistersConfig(**PIXELS, num_register_tokens=4), ("BitImageProcessor", CROP)),
    "dinov3": (t.DINOv3ViTConfig(**PIXELS, num_register_tokens=4), ("DINOv3ViTImageProcessorFast", SQUARE)),
    "clip": (t.CLIPVisionConfig(**PIXELS), ("CLIPImageProcessor", CROP)),
    "siglip": (t.SiglipVisionConfig(**PIXELS), ("SiglipImageProcessor", SQUARE)),
    "naflex": (t.Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=16), ("Siglip2ImageProcessor", None)),
    "swin": (
        t.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=32, window_size=4),
        ("ViTImageProcessor", SQUARE),
    ),
    "convnext": (
        t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ),
    "resnet": (
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ),
    "efficientnet": (
        t.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320, image_size=32),
        ("EfficientNetImageProcessor", SQUARE),
    ),
}
# name -> (config, pooling)
TEXT = {
    "bert": (t.BertConfig(**SMALL), "cls"),
    "roberta": (t.RobertaConfig(**SMALL, max_position_embeddings=66), "cls"),
    "modernbert": (t.ModernBertConfig(**SMALL, global_attn_every_n_layers=1, max_position_embeddings=64), "cls"),
    "deberta": (t.DebertaV2Config(**SMALL), "cls"),
    "mpnet": (t.MPNetConfig(**SMALL, max_position_embeddings=66), "mean"),
    "minilm": (t.BertConfig(**SMALL), "mean"),
    "clip": (t.CLIPTextConfig(**SMALL, max_position_embeddings=16), "pooler"),
    "siglip": (t.SiglipTextConfig(**SMALL, max_position_embeddings=16), "pooler"),
    "siglip2": (t.Siglip2TextConfig(**SMALL, max_position_embeddings=16), "pooler"),
    "qwen3": (t.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, max_position_embeddings=64), "last"),
    "gpt2": (t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64), "last"),
    "gemma": (t.GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=16, max_position_embeddings=64), "last"),
}


@pytest.fixture(scope="module")
def tokenizer(splits) -> PreTrainedTokenizerFast:
    """Its last id ends a text, as CLIP's does."""
    words = train_tokenizer([study.text("findings") for study in splits.train], 400)
    words.add_special_tokens({"eos_token": "<|endoftext|>"})
    from tokenizers import processors

    end = words.eos_token_id
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A <|endoftext|>", special_tokens=[("[CLS]", words.cls_token_id), ("<|endoftext|>", end)]
    )
    return words


def write_pixels(folder: Path, settings: tuple[str, dict | None]) -> None:
    name, given = settings
    record = {"image_processor_type": name, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    record |= {"resample": 2, "do_resize": True} | ODD
    record |= given or {"max_num_patches": 16, "patch_size": 8}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))


def write_vision(folder: Path, name: str) -> torch.nn.Module:
    config, pixels = VISION[name]
    torch.manual_seed(0)
    model = t.AutoModel.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    write_pixels(folder, pixels)
    return model.eval()


def with_ids(config, tokenizer):
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def write_text(folder: Path, name: str, tokenizer) -> torch.nn.Module:
    config = with_ids(TEXT[name][0], tokenizer)
    halves = {"siglip": t.SiglipTextModel, "siglip2": t.Siglip2TextModel}
    torch.manual_seed(1)
    model = halves[name](config) if name in halves else t.AutoModel.from_config(config)
    model.save_pretrained(folder)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    if name in ("gpt2", "qwen3"):
        plain.pad_token = None
    plain.save_pretrained(folder)
    if name == "minilm":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return model.eval()


def picture(studies, index: int = 0) -> Image.Image:
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 255, (50, 70), dtype=np.uint8)).convert("RGB")


def load(path: str, splits, **options) -> tuple[DualEncoderModel, t.ProcessorMixin]:
    given = PairArguments(model_name_or_path=path, **options)
    return load_dual_encoder(DualEncoderModel, given, splits)


def train(model: DualEncoderModel, processor, splits, steps: int = 8) -> list[float]:
    collator = PairCollator(processor, splits.image_folder, sections="findings")
    rows = StudyRows(splits.train)
    batch = collator([rows[i] for i in range(6)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same_outputs(model, again, processor, splits) -> None:
    rows = StudyRows(splits.train)
    batch = PairCollator(processor, splits.image_folder, sections="findings")([rows[i] for i in range(3)])
    with torch.no_grad():
        expected, reloaded = model.eval()(**batch).logits_per_image, again.eval()(**batch).logits_per_image
    # to the bit but for convolutions, whose weights may lie otherwise in memory once they are read again
    torch.testing.assert_close(reloaded, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VISION)
def test_a_vision_tower_as_published(name, tmp_path, splits, tokenizer):
    vision, text = tmp_path / "vision", tmp_path / "text"
    stock = write_vision(vision, name)
    write_text(text, "bert", tokenizer)
    model, processor = load(f"{vision},{text}", splits, projection_size=16)

    loaded = load_tower(vision, "vision").state_dict()
    assert all(torch.equal(value, stock.state_dict()[key]) for key, value in loaded.items())
    pictures = [picture(splits, 0), picture(splits, 1)]
    ours = processor.image_processor(pictures, return_tensors="pt")
    if name == "dinov3":  # transformers reads its pixels with torchvision alone: the folder's numbers on Pillow
        assert list(processor.image_processor.image_mean) == ODD["image_mean"] and ours.pixel_values.shape[-1] == 32
    else:
        theirs = AutoImageProcessor.from_pretrained(vision, backend="pil", trust_remote_code=False)
        expected = theirs(pictures, return_tensors="pt")
        assert all(torch.equal(ours[key], expected[key]) for key in expected) and "pixel_values" in expected
    with torch.no_grad():
        inputs = {key: ours[key] for key in IMAGE_INPUTS if key in ours}
        seen, output = encode_image(model.eval().vision_tower, **inputs), stock(**inputs)
        pooled = output.pooler_output if name != "vit" else output.last_hidden_state[:, 0]
        torch.testing.assert_close(seen.pooled, pooled.flatten(1), atol=1e-5, rtol=0)
    if name != "naflex":
        assert seen.patches.shape[1] == seen.grid[0] * seen.grid[1]

    model.gradient_checkpointing_enable()
    losses = train(model, processor, splits)
    assert np.isfinite(losses).all() and min(losses) < losses[0]
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    again = load_strictly(DualEncoderModel, tmp_path / "run")
    reread = load_processor(tmp_path / "run")
    if name != "dinov3":
        assert all(torch.equal(reread.image_processor(pictures, return_tensors="pt")[key], ours[key]) for key in inputs)
    same_outputs(model, again, reread, splits)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_tower_as_published(name, tmp_path, splits, tokenizer):
    vision, text = tmp_path / "vision", tmp_path / "text"
    write_vision(vision, "vit")
    stock, pooling = write_text(text, name, tokenizer), TEXT[name][1]
    model, processor = load(f"{vision},{text}", splits, projection_size=16)
    assert model.config.text_pooling == pooling

    texts = ["the heart is enlarged", "the heart is normal in size and the lungs are clear"]
    collator = PairCollator(processor, splits.image_folder)
    batch = collator.tokenize(texts)
    with torch.no_grad():
        read = encode_text(model.eval().text_tower, **batch, pooling=pooling)
        for row, sentence in enumerate(texts):  # each alone, without padding or as it was trained
            one = collator.processor.tokenizer(sentence, return_tensors="pt", return_attention_mask=True)
            ids = one.input_ids
            if name.startswith("siglip"):
                ids = torch.nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=processor.tokenizer.pad_token_id)
            output = stock(input_ids=ids)
            states = output.last_hidden_state[0]
            expected = {"cls": states[0], "mean": states.mean(0), "last": states[-1]}.get(pooling)
            expected = output.pooler_output[0] if pooling == "pooler" else expected
            torch.testing.assert_close(read.pooled[row], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(read.pooled[0], read.pooled[1], atol=1e-3)
    losses = train(model, processor, splits)
    assert np.isfinite(losses).all() and min(losses) < losses[0]
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    same_outputs(model, load_strictly(DualEncoderModel, tmp_path / "run"), load_processor(tmp_path / "run"), splits)


def two_towers(kind: str, tokenizer) -> torch.nn.Module:
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {f"{n}_token_id": i for n, i in (("bos", 2), ("eos", tokenizer.eos_token_id), ("pad", 0))}
    torch.manual_seed(2)
    if kind == "clip":
        config = t.CLIPConfig(text_config=text, vision_config=PIXELS, projection_dim=24, logit_scale_init_value=4.0)
        return t.CLIPModel(config).eval()
    vision = PIXELS if kind == "siglip" else SMALL | {"patch_size": 8, "num_patches": 16}
    config_class, model_class = {
        "siglip": (t.SiglipConfig, t.SiglipModel),
        "siglip2": (t.Siglip2Config, t.Siglip2Model),
    }[kind]
    model = model_class(config_class(text_config=text, vision_config=vision))
    model.logit_scale.data.fill_(4.7)
    model.logit_bias.data.fill_(-12.9)
    return model.eval()


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_one_checkpoint_with_both_towers_goes_on_and_is_saved_back(kind, tmp_path, splits, tokenizer):
    stock, folder = two_towers(kind, tokenizer), tmp_path / "published"
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"clip": ("CLIPImageProcessor", CROP), "siglip": ("SiglipImageProcessor", SQUARE)}
    write_pixels(folder, pixels.get(kind, ("Siglip2ImageProcessor", None)))
    model, processor = load(str(folder), splits)

    rows = StudyRows(splits.train)
    batch = PairCollator(processor, splits.image_folder, sections="findings")([rows[i] for i in range(4)])
    images = {name: batch[name] for name in IMAGE_INPUTS if name in batch}
    ids = batch["input_ids"]
    if kind != "clip":
        ids = torch.nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=0)
    with torch.no_grad():
        expected = stock(input_ids=ids, **images).logits_per_image
        output = model.eval()(**batch)
        bias = model.logit_bias if kind != "clip" else 0.0
        torch.testing.assert_close(output.logits_per_image + bias, expected, atol=1e-4, rtol=0)
    assert np.isfinite(train(model, processor, splits)).all()

    save_published(model, processor, tmp_path / "back")
    back = type(stock).from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        expected = back(input_ids=ids, **images).logits_per_image
        torch.testing.assert_close(model.eval()(**batch).logits_per_image + bias, expected, atol=1e-4, rtol=0)
    again, _ = load(str(tmp_path / "back"), splits)
    same_outputs(model, again, processor, splits)


def openai_layout(model: t.CLIPModel) -> dict[str, torch.Tensor]:
    """OpenAI's names, written here by hand: what `clip.load(...).state_dict()` holds."""
    theirs = {"logit_scale": model.logit_scale}
    sides = (("vision_model", "visual.", "visual.transformer."), ("text_model", "", "transformer."))
    for side, top, blocks in sides:
        tower = getattr(model, side)
        for number, layer in enumerate(tower.encoder.layers):
            name, attention = f"{blocks}resblocks.{number}.", layer.self_attn
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            theirs[f"{name}attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
            theirs[f"{name}attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
            pairs = (("attn.out_proj", attention.out_proj), ("ln_1", layer.layer_norm1), ("ln_2", layer.layer_norm2))
            for key, module in (*pairs, ("mlp.c_fc", layer.mlp.fc1), ("mlp.c_proj", layer.mlp.fc2)):
                theirs[f"{name}{key}.weight"], theirs[f"{name}{key}.bias"] = module.weight, module.bias
        embeddings = tower.embeddings
        theirs[f"{top}positional_embedding"] = embeddings.position_embedding.weight
    vision, text = model.vision_model, model.text_model
    theirs["visual.class_embedding"] = vision.embeddings.class_embedding
    theirs["visual.conv1.weight"] = vision.embeddings.patch_embedding.weight
    theirs["token_embedding.weight"] = text.embeddings.token_embedding.weight
    for key, module in (
        ("visual.ln_pre", vision.pre_layrnorm),
        ("visual.ln_post", vision.post_layernorm),
        ("ln_final", text.final_layer_norm),
    ):
        theirs[f"{key}.weight"], theirs[f"{key}.bias"] = module.weight, module.bias
    theirs["visual.proj"], theirs["text_projection"] = model.visual_projection.weight.T, model.text_projection.weight.T
    return {key: value.detach().clone() for key, value in theirs.items()}


class Scripted(torch.nn.Module):
    """What OpenAI's archive is: modules with the weights under their names, and a program."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for key, value in weights.items():
            first, _, rest = key.partition(".")
            if not rest:
                setattr(self, first, torch.nn.Parameter(value) if value.is_floating_point() else value)
        for first in {key.partition(".")[0] for key in weights if "." in key}:
            inner = {key.removeprefix(f"{first}."): v for key, v in weights.items() if key.startswith(f"{first}.")}
            self.add_module(first, Scripted(inner))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


@pytest.mark.parametrize("layout", ["OpenAI's .pt", "TorchScript", "open_clip"])
def test_openais_layout(layout, tmp_path, splits, tokenizer):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    act = {"hidden_act": "quick_gelu" if layout != "open_clip" else "gelu"}
    vision = sizes | act | {"image_size": 32, "patch_size": 8}
    stock = t.CLIPModel(t.CLIPConfig(text_config=text | act, vision_config=vision, projection_dim=24)).eval()
    tokenizer.save_pretrained(tmp_path)
    weights = openai_layout(stock)
    if layout == "open_clip":
        cfg = {"embed_dim": 24, "vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 16}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
        torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    else:
        more = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}
        more["transformer.resblocks.0.attn_mask"] = torch.zeros(16, 16)
        if layout == "TorchScript":
            torch.jit.script(Scripted(weights | more)).save(str(tmp_path / "ViT-B-32.pt"))
        else:
            torch.save(weights | more, tmp_path / "ViT-B-32.pt")
    model, processor = load(str(tmp_path), splits)
    back = to_published(model)
    assert back.keys() == weights.keys() and all(torch.equal(back[key], value) for key, value in weights.items())
    rows = StudyRows(splits.train)
    batch = PairCollator(processor, splits.image_folder, sections="findings")([rows[i] for i in range(3)])
    assert batch["input_ids"].shape[1] <= 16
    with torch.no_grad():
        expected = stock(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits_per_image
        torch.testing.assert_close(model.eval()(**batch).logits_per_image, expected, atol=1e-4, rtol=0)


def naive_clip(weights: dict[str, torch.Tensor], pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """OpenAI's image tower written out, one head of 64 and the plain GELU, from its published names."""
    layer_norm, linear = torch.nn.functional.layer_norm, torch.nn.functional.linear

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    states = torch.nn.functional.conv2d(pixels, weights["visual.conv1.weight"], stride=patch).flatten(2).mT
    cls = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    states = norm(torch.cat((cls, states), 1) + weights["visual.positional_embedding"], "visual.ln_pre")
    for number in range(2):
        block = f"visual.transformer.resblocks.{number}."
        joint = linear(
            norm(states, f"{block}ln_1"), weights[f"{block}attn.in_proj_weight"], weights[f"{block}attn.in_proj_bias"]
        )
        query, key, value = joint.chunk(3, -1)
        heard = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
        states = states + linear(heard, weights[f"{block}attn.out_proj.weight"], weights[f"{block}attn.out_proj.bias"])
        wide = linear(
            norm(states, f"{block}ln_2"), weights[f"{block}mlp.c_fc.weight"], weights[f"{block}mlp.c_fc.bias"]
        )
        wide = torch.nn.functional.gelu(wide)
        states = states + linear(wide, weights[f"{block}mlp.c_proj.weight"], weights[f"{block}mlp.c_proj.bias"])
    return norm(states[:, 0], "visual.ln_post") @ weights["visual.proj"]


def test_open_clips_vit_beside_a_bert(tmp_path, splits, tokenizer):
    """open_clip's `CustomTextCLIP`: OpenAI's names for the images, transformers' for the texts; there and back."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    vision = sizes | {"image_size": 32, "patch_size": 8, "hidden_act": "gelu"}
    text = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    stock = t.CLIPModel(t.CLIPConfig(text_config=text | {"intermediate_size": 8}, vision_config=vision)).eval()
    images = {key: value for key, value in openai_layout(stock).items() if key.startswith("visual.")}
    bert = t.BertModel(t.BertConfig(**sizes, vocab_size=len(tokenizer)), add_pooling_layer=False).eval()
    projection = {"text.proj.0.weight": torch.randn(288, 64), "text.proj.2.weight": torch.randn(512, 288)}
    texts = {f"text.transformer.{key}": value for key, value in bert.state_dict().items()}
    weights = images | texts | projection | {"logit_scale": torch.tensor(3.0)}
    weights = {key: value.detach().clone() for key, value in weights.items()}
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    text_cfg = {"hf_model_name": "nobody/bert", "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    cfg = {"embed_dim": 512, "vision_cfg": {"image_size": 32}, "text_cfg": text_cfg | {"context_length": 20}}
    preprocess = {"mean": ODD["image_mean"], "std": ODD["image_std"]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    tokenizer.save_pretrained(folder)
    model, processor = load(str(folder), splits)
    assert list(processor.image_processor.image_mean) == ODD["image_mean"]
    rows = StudyRows(splits.train)
    batch = PairCollator(processor, splits.image_folder, sections="findings")([rows[i] for i in range(3)])
    with torch.no_grad():
        seen = naive_clip(weights, batch["pixel_values"], 8)
        states = bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
        read = (
            torch.nn.functional.gelu(states @ projection["text.proj.0.weight"].T) @ projection["text.proj.2.weight"].T
        )
        unit = torch.nn.functional.normalize
        expected = weights["logit_scale"].exp() * unit(seen, dim=-1) @ unit(read, dim=-1).T
        torch.testing.assert_close(model.eval()(**batch).logits_per_image, expected, atol=1e-4, rtol=0)
    assert np.isfinite(train(model, processor, splits)).all()
    save_published(model, processor, tmp_path / "back", like=folder)
    again, _ = load(str(tmp_path / "back"), splits)
    same_outputs(model, again, processor, splits)
    with pytest.raises(ValueError, match="no open_clip_config.json"):
        save_published(model, processor, tmp_path / "elsewhere", like=tmp_path)


def test_a_causal_tower_read_at_its_first_token_is_stopped(tmp_path, splits, tokenizer):
    from hf_medvlm.evaluation.retrieval import RetrievalEvaluation

    vision, text = tmp_path / "vision", tmp_path / "text"
    write_vision(vision, "vit")
    write_text(text, "gpt2", tokenizer)
    for pooling, state in (("cls", "STOP"), ("last", "ok")):
        model, processor = load(f"{vision},{text}", splits, projection_size=16, text_pooling=pooling)
        evaluation = RetrievalEvaluation(PairCollator(processor, splits.image_folder), model)
        lines = evaluation.preflight(model, [study.text("findings") for study in splits.train])
        assert [line[0] for line in lines] == [state], lines


def test_without_an_image_processor_the_architectures_own_numbers(tmp_path, splits, tokenizer):
    for name, mean in (("vit", 0.5), ("clip", 0.48145466), ("siglip", 0.5), ("dinov2", 0.485), ("resnet", 0.485)):
        vision, text = tmp_path / f"v_{name}", tmp_path / "text"
        write_vision(vision, name)
        (vision / "preprocessor_config.json").unlink()
        if not text.is_dir():
            write_text(text, "bert", tokenizer)
        _, processor = load(f"{vision},{text}", splits, projection_size=16)
        assert processor.image_processor.image_mean[0] == mean
        assert not getattr(processor.image_processor, "do_center_crop", False)


def test_the_options_of_the_combined_score():
    assert PairArguments(combined_weights="0.6,0.4").weights == (0.6, 0.4)
    for wrong in ("1", "a,b", "-1,2", "0,0", "nan,1"):
        with pytest.raises(ValueError, match="--combined_weights"):
            _ = PairArguments(combined_weights=wrong).weights
