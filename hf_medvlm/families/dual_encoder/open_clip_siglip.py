"""open_clip's SigLIP (timm's ViT with an attention head, open_clip's own text tower) <-> transformers' SiglipModel.

Renames keys and reads open_clip's config; builds no model. Published: timm/ViT-B-16-SigLIP and its kin, SigLIP 2 of a
fixed size among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

from hf_medvlm.families.dual_encoder.openai import openai_names, to_openai

TRUNK, HEAD = "visual.trunk.", "visual.trunk.attn_pool."
TIMM_HEADS = {"test": 2, "tiny": 3, "small": 6, "base": 12, "large": 16, "so400m": 16, "giantopt": 16}
# timm runs its other SigLIPs with the exact GELU, whatever they were trained with
TIMM_TANH = r"base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt"
# (theirs, transformers')
IMAGES = (
    (f"{TRUNK}patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    (f"{TRUNK}norm.", "vision_model.post_layernorm."),
    (f"{HEAD}latent", "vision_model.head.probe"),
    (f"{HEAD}proj.", "vision_model.head.attention.out_proj."),
    (f"{HEAD}norm.", "vision_model.head.layernorm."),
    (f"{HEAD}mlp.", "vision_model.head.mlp."),
)
BLOCK = (
    ("attn.proj.", "self_attn.out_proj."),
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
)
POSITIONS = (f"{TRUNK}pos_embed", "vision_model.embeddings.position_embedding.weight")
JOINT = "vision_model.head.attention.in_proj_"
TEXT_HEAD = ("text.text_projection.", "text_model.head.")


def is_siglip(published: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of open_clip's SigLIP: an attention head over a ViT, beside open_clip's own texts."""
    return f"{HEAD}latent" in published and "text.token_embedding.weight" in published


def siglip_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names -> those of transformers' SiglipModel; a key of no known kind stays, and fails to load."""
    texts = {key: value for key, value in published.items() if key.startswith("text.") and TEXT_HEAD[0] not in key}
    renamed = openai_names(texts)
    for kind in ("weight", "bias"):  # the head's query, and its key and value, are one matrix in transformers
        if f"{HEAD}q.{kind}" in published and f"{HEAD}kv.{kind}" in published:
            renamed[JOINT + kind] = torch.cat([published[f"{HEAD}q.{kind}"], published[f"{HEAD}kv.{kind}"]])
    for key, value in published.items():
        block = re.match(rf"{re.escape(TRUNK)}blocks\.(\d+)\.(.*)", key)
        if key in texts or re.match(rf"{re.escape(HEAD)}(q|kv)\.", key):
            continue
        if block and block[2].startswith("attn.qkv."):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                kind = block[2].removeprefix("attn.qkv.")
                renamed[f"vision_model.encoder.layers.{block[1]}.self_attn.{name}_proj.{kind}"] = part
        elif block:
            renamed[f"vision_model.encoder.layers.{block[1]}." + _replace(block[2], BLOCK, 0)] = value
        elif key == POSITIONS[0]:
            renamed[POSITIONS[1]] = value.squeeze(0)
        else:
            renamed[_replace(key, (*IMAGES, TEXT_HEAD), 0)] = value
    return renamed


def to_siglip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers' SiglipModel -> open_clip's, key for key."""
    texts = {key: value for key, value in weights.items() if key.startswith("text_model.") and ".head." not in key}
    published = {f"text.{key}": value for key, value in to_openai(texts).items()}
    for key, value in weights.items():
        block = re.match(r"vision_model\.encoder\.layers\.(\d+)\.(.*)", key)
        if key in texts or (block and block[2].startswith(("self_attn.k_proj.", "self_attn.v_proj."))):
            continue
        if block and block[2].startswith("self_attn.q_proj."):
            kind = block[2].removeprefix("self_attn.q_proj.")
            parts = [weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            published[f"{TRUNK}blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat(parts)
        elif block:
            published[f"{TRUNK}blocks.{block[1]}." + _replace(block[2], BLOCK, 1)] = value
        elif key.startswith(JOINT):
            query, *others = value.chunk(3)
            kind = key.removeprefix(JOINT)
            published |= {f"{HEAD}q.{kind}": query, f"{HEAD}kv.{kind}": torch.cat(others)}
        elif key == POSITIONS[1]:
            published[POSITIONS[0]] = value.unsqueeze(0)
        else:
            published[_replace(key, (*IMAGES, TEXT_HEAD), 1)] = value
    return published


def _replace(key: str, pairs: tuple[tuple[str, str], ...], source: int) -> str:
    pair = next((pair for pair in pairs if key.startswith(pair[source])), ("", ""))
    return pair[1 - source] + key.removeprefix(pair[source])


def siglip_config(model: dict[str, Any], weights: Mapping[str, Tensor], folder: str | Path) -> SiglipConfig:
    """The config, from open_clip's `model_cfg` and from the shapes of the weights in transformers' names.

    Raises:
        ValueError: texts that SigLIP's tower does not read so (causal, or pooled at another token), or a number of
            heads that cannot be told.
    """
    images, texts = model.get("vision_cfg", {}), model.get("text_cfg", {})
    wanted = {"no_causal_mask": True, "pool_type": "last"}
    wrong = [f"{key} {texts.get(key)!r}" for key, value in wanted.items() if texts.get(key) != value]
    if wrong or "text_model.head.weight" not in weights:
        raise ValueError(
            f"{folder}: SigLIP's text tower in transformers sees all tokens, pools the last and projects it; here "
            f'"text_cfg" has {", ".join(wrong) or "no projection"}'
        )
    name = str(images.get("timm_model_name", ""))
    heads = next((count for size, count in TIMM_HEADS.items() if size in re.split(r"[_-]", name)), None)
    patch = weights["vision_model.embeddings.patch_embedding.weight"]
    if heads is None or patch.shape[0] % heads:
        raise ValueError(
            f'{folder}: "timm_model_name" {name!r:.100} says nothing of how many heads a tower {patch.shape[0]} '
            f"wide has; "
            f"known are {', '.join(TIMM_HEADS)}"
        )
    side = math.isqrt(len(weights[POSITIONS[1]])) * patch.shape[-1]
    vision = SiglipVisionConfig(
        **_sizes(weights, "vision_model"),
        num_attention_heads=heads,
        patch_size=patch.shape[-1],
        image_size=side,
        hidden_act="gelu_pytorch_tanh" if re.search(TIMM_TANH, name) else "gelu",
    )
    is_tanh = texts.get("act_kwargs", {}).get("approximate") == "tanh"
    words, _ = weights["text_model.embeddings.token_embedding.weight"].shape
    text = SiglipTextConfig(
        **_sizes(weights, "text_model"),
        num_attention_heads=texts.get("heads", 8),
        vocab_size=words,
        max_position_embeddings=len(weights["text_model.embeddings.position_embedding.weight"]),
        projection_size=len(weights["text_model.head.weight"]),
        hidden_act="gelu_pytorch_tanh" if is_tanh else "gelu",
        layer_norm_eps=texts.get("norm_kwargs", {}).get("eps", 1e-5),
        bos_token_id=None,
        eos_token_id=None,
    )
    return SiglipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())


def _sizes(weights: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    layers = [int(match[1]) for key in weights if (match := re.match(rf"{side}\.encoder\.layers\.(\d+)\.", key))]
    inner, width = weights[f"{side}.encoder.layers.0.mlp.fc1.weight"].shape
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 1 + max(layers)}
