"""CLIP, SigLIP and SigLIP 2 of transformers, and OpenAI's CLIP layout, <-> the state dict of a `DualEncoderModel`.

One checkpoint with both towers goes on with its projections, temperature and bias, and is saved back as it came.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from hf_medvlm.models.convert.checkpoint import load_weights
from hf_medvlm.models.loading import find_folder, load_strictly, model_type_of

KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "clip": (CLIPConfig, CLIPModel),
    "siglip": (SiglipConfig, SiglipModel),
    "siglip2": (Siglip2Config, Siglip2Model),
}
BY_TOWER = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "siglip2_vision_model": "siglip2"}
# (theirs, ours)
PREFIXES = (
    ("vision_model.", "vision_tower."),
    ("text_model.", "text_tower."),
    ("visual_projection.", "vision_projection."),
)
SCALARS = ("logit_scale", "logit_bias")
UNBOUNDED = 1e4  # of the inverse temperature: SigLIP bounds it by nothing


def read_two_towers(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config options and state dict, in our names, of a CLIP, SigLIP or SigLIP 2 folder.

    Raises:
        ValueError: another model, or weights that do not fit.
    """
    folder = find_folder(folder)
    kind = model_type_of(folder)
    if kind not in KINDS:
        raise ValueError(f"{folder} holds a {kind!r} checkpoint; one with both towers is of {', '.join(KINDS)}")
    model = load_strictly(KINDS[kind][1], folder)
    return options_of(model.config, model.state_dict()), our_names(model.state_dict())


def options_of(config: PreTrainedConfig, state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Options of a `DualEncoderConfig` that continues such a model."""
    is_clip = config.model_type == "clip"
    bound = UNBOUNDED if not is_clip else max(100.0, float(state_dict["logit_scale"].exp()) * 1.001)
    text = config.text_config
    return {
        "vision_config": config.vision_config,
        "text_config": text,
        "projection_size": config.projection_dim if is_clip else getattr(text, "projection_size", text.hidden_size),
        "vision_projection": "linear" if is_clip else "none",
        "text_projection": "linear" if is_clip else "none",
        "text_pooling": "pooler",
        "loss": "info_nce" if is_clip else "sigmoid",
        "max_logit_scale": bound,
    }


def our_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> ours."""
    renamed = {}
    for key, value in state_dict.items():
        theirs, ours = next((pair for pair in PREFIXES if key.startswith(pair[0])), ("", ""))
        renamed[ours + key.removeprefix(theirs)] = value.reshape(1) if key in SCALARS else value
    return renamed


def to_two_towers(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as a CLIP, SigLIP or SigLIP 2 of transformers.

    Raises:
        ValueError: towers or projections that no such model has.
    """
    config = model.config
    kind = BY_TOWER.get(config.vision_config.model_type)
    wanted = ("linear", "linear") if kind == "clip" else ("none", "none")
    text_kind = config.text_config.model_type
    if kind is None or not text_kind.startswith(f"{kind}_text") or wanted != _projections(config):
        raise ValueError(
            f"a {config.vision_config.model_type} and a {text_kind} with {' and '.join(_projections(config))} "
            f"projections are no model of {', '.join(KINDS)}; this one is saved in the project's own layout alone"
        )
    if config.text_pooling != "pooler":
        raise ValueError(f"{kind} pools its texts itself; this model has text_pooling={config.text_pooling!r}")
    config_class: Any
    config_class, model_class = KINDS[kind]
    options = {"projection_dim": config.projection_size} if kind == "clip" else {}
    with torch.device("meta"):
        upstream = model_class(
            config_class(
                vision_config=config.vision_config.to_dict(), text_config=config.text_config.to_dict(), **options
            )
        )
    shapes = {key: value.shape for key, value in upstream.state_dict().items()}
    weights = {}
    for key, value in model.state_dict().items():
        theirs, ours = next((pair for pair in PREFIXES if key.startswith(pair[1])), ("", ""))
        name = theirs + key.removeprefix(ours)
        if name in shapes:
            weights[name] = value.detach().reshape(shapes[name]).clone()
    if kind != "clip" and "logit_bias" not in weights:
        raise ValueError("a SigLIP has a bias, and a model trained with --loss info_nce has none")
    upstream = upstream.to_empty(device="cpu")
    load_weights(upstream, weights, ignorable=("*.position_ids",), what="the dual encoder")
    for name, buffer in upstream.named_buffers():  # computed, not saved
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return upstream


def _projections(config: PreTrainedConfig) -> tuple[str, str]:
    return config.vision_projection, config.text_projection


def save_published(model: PreTrainedModel, processor: Any, folder: str | Path) -> None:
    """Write a dual encoder in the layout of transformers' CLIP, SigLIP or SigLIP 2, with the processor beside it.

    Raises:
        ValueError: the model is none of these.
    """
    to_two_towers(model).save_pretrained(folder)
    if processor is not None:
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------- OpenAI's layout

BLOCK = (
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
OPENAI_VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
OPENAI_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
UNUSED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")  # numbers, not weights


def is_openai(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of OpenAI's CLIP with a ViT, alone or with a BERT of transformers for the text."""
    return "visual.class_embedding" in state_dict and "visual.proj" in state_dict


def openai_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names -> those of transformers' CLIPModel; names of another kind stay, for strict loading to refuse."""
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key in UNUSED:
            continue
        plain = key.removeprefix("text.") if not key.startswith("text.transformer.embeddings.") else key
        block = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.*)", plain)
        if block:
            side = "vision_model" if block[1] else "text_model"
            name, prefix = block[3], f"{side}.encoder.layers.{block[2]}."
            if name.startswith("attn.in_proj_"):
                kind = name.removeprefix("attn.in_proj_")
                for part, chunk in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{prefix}self_attn.{part}_proj.{kind}"] = chunk
                continue
            for theirs, ours in BLOCK:
                name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
            renamed[prefix + name] = value
        elif key in OPENAI_VISION:
            renamed[OPENAI_VISION[key]] = value
        elif plain in TRANSPOSED and value.dim() == 2:
            renamed[TRANSPOSED[plain]] = value.mT.contiguous()
        else:
            renamed[OPENAI_TEXT.get(plain, key)] = value
    return {key: value.float() for key, value in renamed.items()}


def openai_vision(weights: dict[str, Tensor], hidden_act: str) -> CLIPVisionConfig:
    """The image tower's config, from names and shapes; heads are 64 wide, as in every published CLIP."""
    patch = weights["vision_model.embeddings.patch_embedding.weight"]
    tokens = len(weights["vision_model.embeddings.position_embedding.weight"])
    return CLIPVisionConfig(
        **_sizes(weights, "vision_model", hidden_act),
        patch_size=patch.shape[-1],
        image_size=math.isqrt(tokens - 1) * patch.shape[-1],
        projection_dim=len(weights["visual_projection.weight"]),
    )


def openai_config(weights: dict[str, Tensor], hidden_act: str = "quick_gelu") -> CLIPConfig:
    """The config of an OpenAI CLIP, from the names and shapes of its weights.

    Args:
        hidden_act: "quick_gelu" in OpenAI's own, "gelu" in most of open_clip's, which shows in no weight.
    """
    vocabulary, _ = weights["text_model.embeddings.token_embedding.weight"].shape
    joint = len(weights["text_projection.weight"])
    text = CLIPTextConfig(
        **_sizes(weights, "text_model", hidden_act),
        vocab_size=vocabulary,
        max_position_embeddings=len(weights["text_model.embeddings.position_embedding.weight"]),
        projection_dim=joint,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    vision = openai_vision(weights, hidden_act)
    return CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=joint)


def _sizes(weights: dict[str, Tensor], side: str, hidden_act: str) -> dict[str, Any]:
    layers = [int(found[1]) for key in weights if (found := re.match(rf"{side}\.encoder\.layers\.(\d+)\.", key))]
    hidden, width = weights[f"{side}.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": 1 + max(layers),
        "num_attention_heads": max(width // 64, 1),
        "hidden_act": hidden_act,
    }
