"""The layout of the published BioViL and BioViL-T image models (microsoft/hi-ml-multimodal): their names and ours.

Names and shapes only; the text side, CXR-BERT, keeps its published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ResNetConfig

from hf_medvlm.models.convert.checkpoint import describe_checkpoint, read_state_dict
from hf_medvlm.models.convert.resnet import resnet_config, resnet_modules

RESNET = "encoder.encoder."
FC = {"fc_weight": f"{RESNET}fc.weight", "fc_bias": f"{RESNET}fc.bias"}  # ours -> theirs
FC_CLASSES = 1000  # of the ImageNet classifier that lies unused in both published files


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a BioViL or BioViL-T image model, under their published names.

    Args:
        path: the `.pt` file, or a folder with one such file.

    Raises:
        ValueError: none or several such files in the folder, or a checkpoint of another kind (says which it is).
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*image*.pt"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ValueError(
                f"{path}: expected one image model, such as biovil_t_image_model_proj_size_128.pt; found {names}"
            )
        path = files[0]
    state_dict = read_state_dict(path)
    if f"{RESNET}conv1.weight" not in state_dict or "projector.model.0.weight" not in state_dict:
        raise ValueError(f"{path}: this is {describe_checkpoint(state_dict)}, not a BioViL or BioViL-T image model")
    return state_dict


def published_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `BioViLTConfig` that published names and shapes tell; the number of heads (8) they do not."""
    sizes: dict[str, Any] = {
        "backbone_config": resnet_config(state_dict, RESNET),
        "temporal": "encoder.missing_previous_emb" in state_dict,
        "projection_size": len(state_dict["projector.model.0.weight"]),
        "fc_classes": len(state_dict[FC["fc_bias"]]) if FC["fc_bias"] in state_dict else 0,
    }
    if sizes["temporal"]:
        hidden, dim = state_dict["encoder.vit_pooler.blocks.0.mlp.fc1.weight"].shape
        layers = sum(key.endswith("attn.proj_q.weight") for key in state_dict)
        sizes |= {"pooler_dim": dim, "pooler_layers": layers, "pooler_mlp_ratio": hidden / dim}
    return sizes


def from_published(state_dict: Mapping[str, Tensor], backbone: ResNetConfig) -> dict[str, Tensor]:
    """Published names -> those of `BioViLTModel`; a name of neither kind stays, for strict loading to refuse it."""
    modules = {RESNET + theirs: f"backbone.{ours}" for theirs, ours in resnet_modules(backbone).items()}
    fc = {theirs: ours for ours, theirs in FC.items()}

    def rename(key: str) -> str:
        module, _, tensor = key.rpartition(".")
        if module in modules:
            return f"{modules[module]}.{tensor}"
        if key.startswith("projector.model."):
            return key.replace(".model.", ".", 1)
        return fc.get(key, key if key.startswith(RESNET) else key.removeprefix("encoder."))

    return {rename(key): value for key, value in state_dict.items()}


def to_published(model: PreTrainedModel) -> dict[str, Tensor]:
    """The image side of `model` under its published names, for hi-ml-multimodal to load strictly.

    What the published model does not have (text side, temperature, classifiers) is left out. The unused `fc` is what
    came with the file that the model was loaded from, or zeros.

    Raises:
        ValueError: a model with group norms or patch positions, for which the published layout has no place.
    """
    if model.config.norm != "batch":
        raise ValueError('the published layout has batch norms; this model was made with norm="group"')
    if model.config.patch_positions:
        raise ValueError("the published network has no positions on its patches; this model was made with them")
    backbone = model.config.backbone_config
    modules = {f"backbone.{ours}": RESNET + theirs for theirs, ours in resnet_modules(backbone).items()}
    published = {}
    for key, value in model.state_dict().items():
        module, _, tensor = key.rpartition(".")
        if module in modules:
            published[f"{modules[module]}.{tensor}"] = value
        elif key.startswith("projector."):
            published[key.replace("projector.", "projector.model.", 1)] = value
        elif key.startswith(("backbone_to_vit.", "missing_previous_emb", "vit_pooler.")):
            published[f"encoder.{key}"] = value
    channels = backbone.hidden_sizes[-1]
    fc = (
        (model.fc_weight, model.fc_bias)
        if model.config.fc_classes
        else (torch.zeros(FC_CLASSES, channels), torch.zeros(FC_CLASSES))
    )
    return published | dict(zip(FC.values(), fc, strict=True))
