"""Staged fine-tuning: heads first over a frozen backbone, then everything, each layer at a rate of its own.

Phase 1 leaves the backbone as it is (its rate is 0) and trains heads, projections and scale at a constant, higher
rate. Phase 2 trains all on one cosine with warm-up: block i of n of the vision tower at lr x decay^(n-1-i), what
stands in front of the blocks one step lower, heads and text at lr. Only rates change, so that every wrapper (DDP,
ZeRO) keeps the parameters it was built with.

Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce; layer-wise decay as in BEiT (Bao et al. 2021, arXiv 2106.08254).
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

BLOCK = re.compile(r"vision_tower\..*?layers?\.(\d+)\.")
BACKBONES = ("vision_tower.", "text_tower.")
ADAPTED = "base_model.model."  # in front of all names where a model carries LoRA adapters


def parameter_groups(
    model: nn.Module, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups: one a depth of the vision tower, side of the backbone, and with or without weight decay.

    Weight decay spares biases, norms and scalars (parameters of one dimension). Each group says whether it is
    `backbone`.
    """
    named = [(name.removeprefix(ADAPTED), parameter) for name, parameter in model.named_parameters()]
    depths = [int(match[1]) for name, _ in named if (match := BLOCK.match(name))]
    depth = 1 + max(depths, default=-1)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        below = _blocks_above(name, depth)
        decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        key = (below, name.startswith(BACKBONES), decays)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "lr": learning_rate * layer_decay**below,
                "weight_decay": weight_decay if decays else 0.0,
                "backbone": key[1],
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _blocks_above(name: str, depth: int) -> int:
    """How many steps of decay a parameter is away from the heads."""
    if not name.startswith("vision_tower."):
        return 0
    match = BLOCK.match(name)
    if match:
        return depth - 1 - int(match[1])
    return 0 if "norm" in name.split(".")[1] else depth  # the last norm counts as a head, the embeddings lie lowest


def staged_schedule(
    optimizer: torch.optim.Optimizer, *, frozen_steps: int, frozen_rate: float, warmup_steps: int, total_steps: int
) -> LambdaLR:
    """Phase 1 for `frozen_steps` at `frozen_rate` (the backbone at 0), then warm-up and a cosine down to 0."""

    def phase_2(step: int) -> float:
        step -= frozen_steps
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        rest = max(total_steps - frozen_steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / rest)))

    def factor(group: dict[str, Any]) -> Any:
        start = 0.0 if group["backbone"] else frozen_rate / group["lr"]
        return lambda step: start if step < frozen_steps else phase_2(step)

    return LambdaLR(optimizer, [factor(group) for group in optimizer.param_groups])


class TellStep(TrainerCallback):
    """Tells a model with schedules of its own (`set_step`) how far training has come; after a resume too."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        target: Any = getattr(kwargs["model"], "module", kwargs["model"])
        if hasattr(target, "set_step"):
            target.set_step(state.global_step)
