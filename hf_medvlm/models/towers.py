"""Vision and text backbones: any tower of transformers, from a config or a checkpoint; freezing; how texts are pooled.

Knows nothing of projections or losses; `encoding.py` runs the towers.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_medvlm.models.convert.checkpoint import read_json
from hf_medvlm.models.loading import load_config, load_strictly

if TYPE_CHECKING:
    _Model = PreTrainedModel  # what a mix-in stands in front of
else:
    _Model = object

# What a published file has beside the tower, heads of its pretraining and buffers: they may be left over, no other key.
HEADS = (
    "*cls.*", "*classifier.*", "*pooler.*", "*lm_head.*", "*lm_predictions.*", "*mask_predictions.*", "head.*",
    "decoder.*", "*attn.bias", "*attn.masked_bias",
)  # fmt: skip
UNUSED = ("*mask_token",)  # of masked pre-training alone
POOLINGS = ("cls", "mean", "last", "pooler")
PADDED_TEXT = ("siglip_text_model", "siglip2_text_model")  # trained on texts padded to their full length, without mask
OWN_POOLING = ("clip_text_model", *PADDED_TEXT)
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl")
NOT_MAPPED = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}

# ------------------------------------------------------------------------------------------- freezing


def freeze(module: nn.Module, frozen: bool = True) -> None:
    """Freeze `module`, a part of any model, or thaw it. Frozen, it gets no gradient and stays in evaluation mode.

    `model.train()` does not change that, nor does loading weights into the model. Nothing of it is saved.
    """
    for name, parameter in module.named_parameters():
        # a mask token serves masked pre-training alone: it would never get a gradient
        parameter.requires_grad_(not frozen and not name.endswith("mask_token"))
    stay_in_evaluation(module, frozen)


def inside_peft(model: Any) -> Any:
    """The model inside peft's wrapper, its adapters in their places; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stay_in_evaluation(module: nn.Module, stay: bool = True) -> None:
    """Evaluation mode for good: `model.train()` passes `module` by. With `stay=False` it follows the model again."""
    if stay:
        # on the instance, and a partial, so that a deep copy holds the copied module
        vars(module)["train"] = partial(_no_training_mode, module)
        module.eval()
    else:
        vars(module).pop("train", None)


def _no_training_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


class KeepsFrozen(_Model):
    """Mix-in of a `PreTrainedModel` with parts that no loss reaches, or with batch norms.

    Batch-norm layers use, and do not change, their running statistics in training too: batch statistics would tie a
    study's embedding to its neighbours, and the same global batch would not give the same loss when it is split.
    """

    def apply_freezing(self) -> None:
        """Freeze what no loss of this configuration reaches; called after building and after loading."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        # loading replaces the parameters, and with them what was frozen at building
        (loaded[0] if isinstance(loaded, tuple) else loaded).apply_freezing()
        return loaded


# ------------------------------------------------------------------------------------------- building


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with random weights, without the pooling head that a contrastive model does not use."""
    # the class itself: under ZeRO-3 `AutoModel.from_config` would shard the tower before the whole model is initialised
    tower = _tower_class(config)(config, **_without_pooler(config))
    freeze(tower, frozen=False)
    return tower


def load_tower(name: str | Path, side: str) -> PreTrainedModel:
    """A pretrained backbone from a Hub id or folder; of a checkpoint with both towers (CLIP) one side.

    Args:
        side: "vision" or "text".

    Raises:
        ValueError: there is no such checkpoint, its weights do not fit, or it has no such side.
    """
    config = load_config(name)
    tower = load_strictly(_tower_class(config), name, ignorable=UNUSED, leftover=HEADS, **_without_pooler(config))
    if hasattr(config, f"{side}_config"):
        if not hasattr(tower, f"{side}_model"):
            raise ValueError(
                f"{name} is a {config.model_type}, of which no {side} tower can be taken; give the {side} model itself"
            )
        tower = getattr(tower, f"{side}_model")
    freeze(tower, frozen=False)
    return tower


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if config.model_type in NOT_MAPPED:
        return getattr(transformers, NOT_MAPPED[config.model_type])
    try:
        classes: Any = MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise ValueError(f"transformers has no tower for a {config.model_type!r:.100} config") from error
    return classes[0] if isinstance(classes, tuple) else classes


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    takes = inspect.signature(_tower_class(config)).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def tokens_before(config: PreTrainedConfig) -> int:
    """How many class and register tokens stand in front of a vision tower's patches."""
    if config.model_type.startswith("siglip") or hasattr(config, "depths"):
        return 0
    return 1 + getattr(config, "num_register_tokens", 0)


def hidden_size(config: PreTrainedConfig) -> int:
    """Width of what a tower's features are pooled to."""
    if config.model_type in PADDED_TEXT:
        return config.projection_size or config.hidden_size
    for name in ("hidden_size", "hidden_dim"):  # hidden_dim is EfficientNet's
        if getattr(config, name, None):
            return getattr(config, name)
    return config.hidden_sizes[-1]  # a staged network


# ------------------------------------------------------------------------------------------- words


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a text tower is a decoder, whose tokens see what stands before them alone: GPT-2, Qwen, Gemma, ..."""
    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return is_decoder and not getattr(config, "use_bidirectional_attention", False)


def default_pooling(config: PreTrainedConfig, folder: Path | None = None) -> str:
    """How the features of a text tower were pooled when it was trained, one of `POOLINGS`.

    A folder of sentence-transformers says so itself (`1_Pooling/config.json`); otherwise the architecture does: the end
    token of CLIP and SigLIP, the last token of a decoder, the mean of MPNet, the first token of all others.
    """
    record = folder / "1_Pooling" / "config.json" if folder is not None else None
    if record is not None and record.is_file():
        modes = read_json(record)
        for pooling, mode in (("mean", "mean_tokens"), ("cls", "cls_token"), ("last", "lasttoken")):
            if isinstance(modes, dict) and modes.get(f"pooling_mode_{mode}"):
                return pooling
    if config.model_type in OWN_POOLING:
        return "pooler"
    if is_causal(config):
        return "last"
    return "mean" if config.model_type in ("mpnet", "gemma3_text") else "cls"


def max_tokens(config: PreTrainedConfig) -> int | None:
    """How many tokens a text tower takes; None where there is no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and config.model_type in OFFSET_POSITIONS:
        limit -= (config.pad_token_id or 0) + 1  # their positions begin behind the padding's
    return limit
