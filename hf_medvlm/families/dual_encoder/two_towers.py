"""CLIP, SigLIP and SigLIP 2 of transformers <-> the state dict of a `DualEncoderModel`.

One checkpoint with both towers goes on with its projections, temperature and bias, and is saved back as it came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
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
        raise ValueError(f"{folder} holds a {kind!r:.100} checkpoint; one with both towers is of {', '.join(KINDS)}")
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
        raise ValueError(f"{kind} pools its texts itself; this model has text_pooling={config.text_pooling!r:.100}")
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
