"""OpenAI's CLIP layout <-> the names of transformers' CLIPModel, for a ViT and OpenAI's text tower, or the ViT alone.

open_clip writes its CLIPs with a ViT in it too, and beside a BERT the ViT alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

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
UNUSED = ("input_resolution", "context_length", "vocab_size")  # numbers, not weights


def is_openai(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of OpenAI's CLIP with a ViT, alone or with a BERT of transformers for the text."""
    return "visual.class_embedding" in state_dict and "visual.proj" in state_dict


def openai_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names -> those of transformers' CLIPModel; names of another kind stay, for strict loading to refuse."""
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key in UNUSED or key.rpartition(".")[2] == "attn_mask":
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


def to_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers' CLIPModel -> OpenAI's, key for key; of one tower too."""
    one = {ours: theirs for theirs, ours in (OPENAI_VISION | OPENAI_TEXT).items()}
    turned = {ours: theirs for theirs, ours in TRANSPOSED.items()}
    published: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = re.match(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.*)", key)
        if not block:
            published[turned.get(key) or one.get(key, key)] = value.mT.contiguous() if key in turned else value
            continue
        name, prefix = block[3], f"{'visual.' * (block[1] == 'vision')}transformer.resblocks.{block[2]}."
        if name.startswith("self_attn.q_proj."):
            parts = [weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            published[f"{prefix}attn.in_proj_{name.rpartition('.')[2]}"] = torch.cat(parts)
        elif not name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            for theirs, ours in BLOCK:
                name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
            published[prefix + name] = value
    return published


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
    layers = [int(match[1]) for key in weights if (match := re.match(rf"{side}\.encoder\.layers\.(\d+)\.", key))]
    hidden, width = weights[f"{side}.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": 1 + max(layers),
        "num_attention_heads": max(width // 64, 1),
        "hidden_act": hidden_act,
    }
