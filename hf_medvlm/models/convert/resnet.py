"""torchvision's ResNet in transformers' terms: its module names, and the configuration that its shapes tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import ResNetConfig


def resnet_modules(config: ResNetConfig) -> dict[str, str]:
    """torchvision's module name -> that of `ResNetModel`, for every convolution and batch norm; `fc` has no partner."""
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage, depth in enumerate(config.depths or ()):
        for block in range(depth):
            theirs, ours = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
            names[f"{theirs}.downsample.0"] = f"{ours}.shortcut.convolution"
            names[f"{theirs}.downsample.1"] = f"{ours}.shortcut.normalization"
            for number in range(3 if config.layer_type == "bottleneck" else 2):
                names[f"{theirs}.conv{number + 1}"] = f"{ours}.layer.{number}.convolution"
                names[f"{theirs}.bn{number + 1}"] = f"{ours}.layer.{number}.normalization"
    return names


def resnet_config(state_dict: Mapping[str, Tensor], prefix: str = "") -> ResNetConfig:
    """Depths, widths and kind of block of the torchvision ResNet whose keys begin with `prefix`."""
    depths: list[int] = []
    widths: list[int] = []
    kind = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in state_dict else "basic"
    while f"{prefix}layer{len(depths) + 1}.0.conv1.weight" in state_dict:
        layer, depth = f"{prefix}layer{len(depths) + 1}", 0
        while f"{layer}.{depth}.conv1.weight" in state_dict:
            depth += 1
        depths.append(depth)
        widths.append(len(state_dict[f"{layer}.0.conv{3 if kind == 'bottleneck' else 2}.weight"]))
    stem = len(state_dict[f"{prefix}conv1.weight"])
    return ResNetConfig(embedding_size=stem, hidden_sizes=widths, depths=depths, layer_type=kind)
