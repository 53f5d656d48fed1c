"""The layout of the published MedKLIP (MediaBrain-SJTU/MedKLIP): its names and ours. Names and shapes only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_medvlm.models.convert.checkpoint import PICKLED, describe_checkpoint, read_state_dict
from hf_medvlm.models.convert.resnet import resnet_config, resnet_modules

# Index in `nn.Sequential(*children()[:-3])` of torchvision's ResNet -> its name; 2 and 3 are without weights.
STEM_AND_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
MODULES = {  # theirs -> ours
    "res_l1": "patch_projection.0",
    "res_l2": "patch_projection.2",
    "disease_embedding_layer": "entity_projection",
    "cl_fc": "position_projection",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # the three blocks of their `in_proj`, in this order


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a MedKLIP, under their published names without DataParallel's `module.`.

    Args:
        path: the `.pth` file, or a folder with one weight file.

    Raises:
        ValueError: none or several weight files in the folder, or a checkpoint of another kind (says which it is).
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (*PICKLED, ".safetensors"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ValueError(f"{path}: expected one checkpoint, such as checkpoint_final.pth; found {names}")
        path = files[0]
    state_dict = read_state_dict(path)
    if not {"res_features.0.weight", "disease_embedding_layer.weight"} <= state_dict.keys():
        raise ValueError(f"{path}: this is {describe_checkpoint(state_dict)}, not a published MedKLIP")
    return state_dict


def _torchvision(key: str) -> str:
    """`res_features.4.0.conv1` -> `layer1.0.conv1`; other keys as they are."""
    if not key.startswith("res_features."):
        return key
    number, _, rest = key.removeprefix("res_features.").partition(".")
    return f"{STEM_AND_LAYERS.get(number, number)}.{rest}"


def published_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `MedKlipConfig` that published names and shapes tell; heads and dropout they do not.

    Raises:
        ValueError: a weight that the sizes are read from is not there.
    """
    try:
        width, text = state_dict["disease_embedding_layer.weight"].shape
        hidden = len(state_dict["decoder.layers.0.linear1.weight"])
        backbone = resnet_config({_torchvision(key): value for key, value in state_dict.items()})
    except KeyError as error:
        raise ValueError(f"this MedKLIP checkpoint has no {error}; it is not whole") from error
    layers = sum(key.endswith(".linear1.weight") for key in state_dict)
    return {
        "backbone_config": backbone,
        "text_size": text,
        "d_model": width,
        "decoder_layers": layers,
        "ffn_dim": hidden,
    }


def from_published(state_dict: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Published names -> those of `MedKlipModel`; an unknown name stays, for strict loading to refuse it."""
    modules = {theirs: f"backbone.{ours}" for theirs, ours in resnet_modules(config.backbone_config).items()} | MODULES
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        module, _, tensor = _torchvision(key).rpartition(".")
        if tensor in ("in_proj_weight", "in_proj_bias"):
            kind = tensor.removeprefix("in_proj_")
            converted |= {
                f"{module}.{name}.{kind}": part for name, part in zip(PROJECTIONS, value.chunk(3), strict=True)
            }
        else:
            converted[f"{modules.get(module, module)}.{tensor}" if module in modules else key] = value
    return converted


def to_published(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under their published names, key for key, for the original `MedKLIP` to load strictly.

    The embeddings of entities and positions are left out: the original computes them when it is built. The published
    file is `{"model": {"module." + key: value}}`.

    Raises:
        ValueError: a model with group norms or patch positions, for which the published layout has no place.
    """
    if model.config.norm != "batch":
        raise ValueError('the published layout has batch norms; this model was made with norm="group"')
    if model.config.patch_positions:
        raise ValueError("the published network has no positions on its patches; this model was made with them")
    numbers = {name: number for number, name in STEM_AND_LAYERS.items()}
    modules = {ours: theirs for theirs, ours in MODULES.items()}
    for theirs, ours in resnet_modules(model.config.backbone_config).items():
        layer, dot, rest = theirs.partition(".")
        modules[f"backbone.{ours}"] = f"res_features.{numbers[layer]}{dot}{rest}"
    published: dict[str, Tensor] = {}
    state = model.state_dict()
    for key, value in state.items():
        module, _, tensor = key.rpartition(".")
        parent, _, projection = module.rpartition(".")
        if not module or module == "semantic_projection":
            continue
        if projection in PROJECTIONS:
            if projection == PROJECTIONS[0]:
                parts = [state[f"{parent}.{name}.{tensor}"] for name in PROJECTIONS]
                published[f"{parent}.in_proj_{tensor}"] = torch.cat(parts)
        else:
            published[f"{modules.get(module, module)}.{tensor}"] = value
    return published
