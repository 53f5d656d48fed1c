"""LoRA through peft: put adapters in, and write a plain model when done, checked against the adapted one."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from hf_medvlm.training.deepspeed import unsharded

if TYPE_CHECKING:
    from hf_medvlm.training.trainer import MedVLMTrainer

ADAPTER_FOLDER = "adapter"


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.05,
    target_modules: str | list[str] = "all-linear",
    modules_to_save: list[str] | None = None,
) -> Any:
    """The model with a low-rank adapter on each linear layer (Hu et al. 2021, arXiv 2106.09685); only they train.

    Args:
        alpha: scale of the adapters; twice the rank by default.
        target_modules: names or a pattern of the layers; all linear ones but the output layer by default.
        modules_to_save: modules that train whole and are saved with the adapters.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
    )
    return get_peft_model(model, config)


def is_adapted(model: Any) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model, "merge_and_unload")


def _gathered(trainer: MedVLMTrainer) -> Any:
    """The adapted model with all its weights in this process: under ZeRO-3 a copy on the CPU, shards put together."""
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    sharded = dict(adapted.named_parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in sharded.values()):
        return adapted
    import deepspeed
    from peft import get_peft_model
    from transformers.initialization import no_init_weights

    base = adapted.get_base_model()
    with unsharded(trainer.args), no_init_weights():
        fresh = type(base)(copy.deepcopy(base.config))
    whole = get_peft_model(fresh, copy.deepcopy(adapted.peft_config["default"]))
    for name, parameter in whole.named_parameters():
        with deepspeed.zero.GatheredParameters([sharded[name]]):
            parameter.data = sharded[name].detach().cpu().clone()
    return whole


@torch.no_grad()
def write_merged(trainer: MedVLMTrainer, folder: Path, tolerance: float = 1e-3) -> None:
    """Write the plain model with the adapters merged in to `folder`; the adapters move to `folder/adapter`.

    Args:
        tolerance: of the logits, in float32; half precision is held to 5 % of the largest one.

    Raises:
        ValueError: the logits of the merged model differ from the adapted one's by more than `tolerance`.
    """
    adapted = _gathered(trainer).eval()
    weight = next(adapted.parameters())
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch = {
        name: value.to(weight.device, weight.dtype if name == "pixel_values" else None) for name, value in batch.items()
    }
    before = adapted(**batch).logits.float()
    merged = adapted.merge_and_unload().eval()
    difference = (merged(**batch).logits.float() - before).abs().max().item()
    if difference > (tolerance if weight.dtype == torch.float32 else 0.05 * before.abs().max().item()):
        raise ValueError(
            f"merged and adapted model differ by {difference:.2g} in their logits; the adapter is in {folder}"
        )
    if trainer.is_world_process_zero():
        (folder / ADAPTER_FOLDER).mkdir(exist_ok=True)
        for path in folder.glob("adapter_*"):
            shutil.move(path, folder / ADAPTER_FOLDER / path.name)
        merged.save_pretrained(folder)
