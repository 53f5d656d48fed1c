"""BiomedCLIP and its kin: open_clip's `CustomTextCLIP` (timm ViT, HF BERT) <-> the state dict of a `DualEncoderModel`.

Renames keys and reads open_clip's config; builds no model. Published:
microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224. open_clip's other layouts are in `openai.py` and
`open_clip_siglip.py`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, PreTrainedConfig, PreTrainedModel, ViTConfig

from hf_medvlm.families.dual_encoder.open_clip_siglip import is_siglip, siglip_config, siglip_names, to_siglip
from hf_medvlm.families.dual_encoder.openai import is_openai, openai_config, openai_names, openai_vision, to_openai
from hf_medvlm.families.dual_encoder.two_towers import (
    KINDS,
    options_of,
    our_names,
    read_two_towers,
)
from hf_medvlm.families.dual_encoder.two_towers import (
    PREFIXES as CLIP_PREFIXES,
)
from hf_medvlm.families.dual_encoder.two_towers import (
    save_published as save_two_towers,
)
from hf_medvlm.models.convert.checkpoint import PICKLED, describe_checkpoint, read_json, read_state_dict, refusal
from hf_medvlm.models.loading import load_config, model_type_of

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# Older transformers kept the positions as a buffer, and descendants keep a pooler that open_clip never runs.
IGNORABLE = ("text_tower.embeddings.position_ids", "text_tower.pooler.*")
TIMM_HEADS = {"test": 2, "tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}  # by the size in timm's name
TIMM_EPS = 1e-6  # LayerNorm of timm's ViT; a default of transformers (1e-12) moves features by 1e-6 only, and unseen

# (ours, open_clip's), prefixes in the order that they are tried
PREFIXES = (
    ("vision_tower.embeddings.cls_token", "visual.trunk.cls_token"),
    ("vision_tower.embeddings.position_embeddings", "visual.trunk.pos_embed"),
    ("vision_tower.embeddings.patch_embeddings.projection.", "visual.trunk.patch_embed.proj."),
    ("vision_tower.layernorm.", "visual.trunk.norm."),
    ("vision_tower.layers.", "visual.trunk.blocks."),
    ("vision_projection.", "visual.head.proj."),
    ("text_tower.", "text.transformer."),
    ("text_projection.", "text.proj."),
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
)
BLOCK_PARTS = (
    ("attention.o_proj.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
)
SCALARS = {"logit_scale", "logit_bias"}
QKV = ("q_proj", "k_proj", "v_proj")


def is_published(path: str | Path) -> bool:
    """Whether a folder or file holds a model with both towers that others have published, in a layout known here."""
    path = Path(path)
    if path.is_file():
        return path.suffix in PICKLED
    if (path / CONFIG_FILE).is_file() or not path.is_dir():
        return path.is_dir()
    if (path / "config.json").is_file():
        return model_type_of(path) in KINDS
    files = _pickles(path)
    return len(files) == 1 and not refusal(files[0]) and is_openai(read_state_dict(files[0]))


def _pickles(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in PICKLED)


def read_published(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config options and state dict, in our names, of a published model with both towers.

    Raises:
        ValueError: a file is missing, or the weights are another family's.
    """
    path = Path(path)
    if (path / "config.json").is_file() and not (path / CONFIG_FILE).is_file():
        return read_two_towers(path)
    if not (path / CONFIG_FILE).is_file():
        files = [path] if path.is_file() else _pickles(path) if path.is_dir() else []
        for name in files:
            if reason := refusal(name):
                raise ValueError(f"{name}: {reason}")
        if len(files) == 1 and is_openai(weights := read_state_dict(files[0])):
            return _read_openai(weights, {}, path)
    folder = Path(path)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None or not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{path}: not an open_clip folder; it needs {CONFIG_FILE} and one of {', '.join(WEIGHT_FILES)}"
        )
    published = read_state_dict(file)
    config = read_json(folder / CONFIG_FILE)
    if is_openai(published):
        return _read_openai(published, config.get("model_cfg", config), folder)
    if is_siglip(published):
        weights = siglip_names(published)
        return options_of(siglip_config(config.get("model_cfg", config), weights, folder), weights), our_names(weights)
    if reason := refusal(file):
        raise ValueError(f"{file}: {reason}")
    if "visual.attnpool.positional_embedding" in published:
        raise ValueError(f"{file}: a CLIP with a ResNet, a tower that transformers has not; take one with a ViT")
    if not any(key.startswith("visual.trunk.") for key in published):
        raise ValueError(
            f"{file}: this is {describe_checkpoint(published)}, not BiomedCLIP (a timm ViT beside a BERT, with keys "
            "visual.trunk.* and text.transformer.*)"
        )
    return config_options(config.get("model_cfg", config), published, folder), from_published_keys(published)


def _read_openai(
    published: dict[str, Tensor], model: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """OpenAI's layout, as OpenAI's own `.pt` (no `model_cfg`) or open_clip's; the text tower theirs or a BERT."""
    act = "quick_gelu" if not model or model.get("quick_gelu") else "gelu"
    weights = openai_names(published)
    if "text.transformer.embeddings.word_embeddings.weight" not in published:
        config = openai_config(weights, act)
        return options_of(config, weights), our_names(weights)
    text = model.get("text_cfg", {})
    vision = openai_vision(weights, act)
    ours = from_published_keys({key: value for key, value in weights.items() if key.startswith("text.")})
    ours |= our_names({key: value for key, value in weights.items() if not key.startswith("text.")})
    return {
        "vision_config": vision,
        "text_config": _text_config(text, published, folder),
        "projection_size": vision.projection_dim,
        "vision_projection": "linear",
        "text_projection": "mlp" if "text.proj.2.weight" in published else "linear",
        "text_pooling": "mean" if "mean" in text.get("hf_pooler_type", "") else "cls",
        "loss": "sigmoid" if "logit_bias" in published else "info_nce",
    }, ours


def config_options(model: dict[str, Any], published: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Options of a `DualEncoderConfig` from open_clip's `model_cfg` and, for the sizes it does not give, the weights.

    Raises:
        ValueError: the number of heads, which no weight shows, cannot be told.
    """
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    width, _, patch, _ = published["visual.trunk.patch_embed.proj.weight"].shape
    tokens = published["visual.trunk.pos_embed"].shape[1] - 1
    name = vision.get("timm_model_name", "")
    size = next((size for size in TIMM_HEADS if size in re.split(r"[_-]", name)), None)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": _count(published, r"visual\.trunk\.blocks\.(\d+)\."),
        "num_attention_heads": TIMM_HEADS.get(size or "", width // 64),
        "intermediate_size": published["visual.trunk.blocks.0.mlp.fc1.weight"].shape[0],
        "patch_size": patch,
        "image_size": round(tokens**0.5) * patch,
        "layer_norm_eps": TIMM_EPS,
    }
    projections = {
        "vision_projection": "linear",
        "text_projection": "mlp" if "text.proj.2.weight" in published else "linear",
    }
    given = {key: vision[key] for key in sizes if key in vision}
    return projections | {
        "vision_config": ViTConfig(**(sizes | given), qkv_bias="visual.trunk.blocks.0.attn.qkv.bias" in published),
        "text_config": _text_config(text, published, folder),
        "projection_size": published["visual.head.proj.weight"].shape[0],
        "text_pooling": "mean" if "mean" in text.get("hf_pooler_type", "") else "cls",
        "loss": "sigmoid" if "logit_bias" in published else "info_nce",
    }


def _text_config(text: dict[str, Any], published: dict[str, Tensor], folder: Path) -> PreTrainedConfig:
    """The BERT's config: that of the local folder it names, or of the weights' shapes. Nothing is fetched."""
    for local in (folder / text.get("hf_model_name", ""), Path(text.get("hf_model_name", ""))):
        if (local / "config.json").is_file():
            config = load_config(local)
            if config.model_type in ("bert", "roberta", "xlm-roberta"):
                return config
    embeddings = "text.transformer.embeddings."
    vocabulary, width = published[f"{embeddings}word_embeddings.weight"].shape
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": _count(published, r"text\.transformer\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": width // 64,
        "intermediate_size": published["text.transformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": published[f"{embeddings}position_embeddings.weight"].shape[0],
        "type_vocab_size": published[f"{embeddings}token_type_embeddings.weight"].shape[0],
    }
    given = text.get("hf_model_config") or {key: text[key] for key in BertConfig().to_dict() if key in text}
    sizes |= given
    heads = sizes["num_attention_heads"]
    if not heads or width % heads:
        raise ValueError(
            f"{folder}: a text tower {width} wide has no 64-wide heads, and no weight shows how many there are; put "
            'the BERT\'s config.json into the folder that "hf_model_name" names, or pass config='
        )
    return BertConfig(**sizes)


def _count(published: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for key in published if (match := re.match(pattern, key)))


def _rename(key: str, source: int, target: int) -> str:
    """`key` with the first prefix (and block part) that fits replaced; keys of no known kind stay, and fail to load."""
    for pair in PREFIXES:
        if key.startswith(pair[source]):
            key = pair[target] + key.removeprefix(pair[source])
            break
    if key.startswith(("vision_tower.layers.", "visual.trunk.blocks.")):
        for pair in BLOCK_PARTS:
            key = key.replace(f".{pair[source]}", f".{pair[target]}")
    return key


def from_published_keys(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state dict -> ours: keys renamed, timm's joint query-key-value split in three."""
    state_dict = {}
    for key, value in published.items():
        if ".attn.qkv." in key:
            block, _, kind = _rename(key, 1, 0).partition(".attn.qkv.")
            for name, part in zip(QKV, value.chunk(3), strict=True):
                state_dict[f"{block}.attention.{name}.{kind}"] = part
        else:
            state_dict[_rename(key, 1, 0)] = value
    for name in SCALARS & state_dict.keys():  # open_clip writes () or (1,), ours are (1,)
        state_dict[name] = state_dict[name].reshape(1)
    return state_dict


def to_published(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of `model` in open_clip's layout, as BiomedCLIP's today (without the obsolete `position_ids`).

    A CLIP with a ViT comes back under OpenAI's names, beside CLIP's own text tower or a BERT; SigLIP under timm's.

    Raises:
        ValueError: towers that this layout does not know.
    """
    kinds = model.config.vision_config.model_type, model.config.text_config.model_type
    ours = {key: value.detach() for key, value in model.state_dict().items()}
    scalars = {key: ours.pop(key).reshape(()) for key in SCALARS & ours.keys()}
    if kinds == ("clip_vision_model", "clip_text_model"):
        return to_openai(_clip_names(ours)) | scalars
    if kinds == ("siglip_vision_model", "siglip_text_model"):
        return to_siglip(_clip_names(ours)) | scalars
    if kinds == ("clip_vision_model", "bert"):
        texts = {key: value for key, value in ours.items() if key.startswith("text_")}
        images = {key: value for key, value in ours.items() if key not in texts}
        return to_openai(_clip_names(images)) | {_rename(key, 0, 1): value for key, value in texts.items()} | scalars
    if kinds != ("vit", "bert"):
        raise ValueError(
            f"open_clip's layout here is of a ViT or CLIP's and a BERT or CLIP's text tower, or of SigLIP's two; this "
            f"model has {kinds[0]} and {kinds[1]}"
        )
    published: dict[str, Tensor] = {}
    for key, value in ours.items():
        if ".attention.q_proj." in key:
            parts = [ours[key.replace("q_proj", name)] for name in QKV]
            name = _rename(key.replace("attention.q_proj.", "attn.qkv."), 0, 1)
            published[name] = torch.cat(parts)
        elif not re.search(r"vision_tower\.layers\.\d+\.attention\.[kv]_proj\.", key):
            published[_rename(key, 0, 1)] = value
    return published | scalars


def _clip_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> those of transformers' CLIPModel or SiglipModel."""
    renamed = {}
    for key, value in ours.items():
        theirs, prefix = next((pair for pair in CLIP_PREFIXES if key.startswith(pair[1])), ("", ""))
        renamed[theirs + key.removeprefix(prefix)] = value
    return renamed


def save_published(model: PreTrainedModel, processor: Any, folder: str | Path, like: str | Path | None = None) -> None:
    """Write a dual encoder as it came, with the processor beside it: for transformers' own classes or for open_clip.

    Args:
        like: the open_clip folder that the model was loaded from, whose `open_clip_config.json` is kept; without it the
            layout is that of transformers' CLIP, SigLIP or SigLIP 2.

    Raises:
        ValueError: the model has towers or projections that no such model has.
    """
    if like is None:
        return save_two_towers(model, processor, folder)
    if not (Path(like) / CONFIG_FILE).is_file():
        raise ValueError(f"{like}: no {CONFIG_FILE} in it; name the open_clip folder that the model came from")
    published, folder = to_published(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in published.items()}, folder / WEIGHT_FILES[0])
    shutil.copy(Path(like) / CONFIG_FILE, folder / CONFIG_FILE)
    processor.tokenizer.save_pretrained(folder)
