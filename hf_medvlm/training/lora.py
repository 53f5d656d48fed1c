"""LoRA and QLoRA through peft: quantise the base, put adapters in, and write a plain model when done, checked."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_medvlm.training.deepspeed import unsharded

ADAPTER_FOLDER = "adapter"


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.05,
    target_modules: str | list[str] = "all-linear",
    modules_to_save: list[str] | None = None,
    exclude_modules: str | None = None,
) -> Any:
    """The model with a low-rank adapter on each linear layer (Hu et al. 2021, arXiv 2106.09685); only they train.

    Args:
        alpha: scale of the adapters; twice the rank by default.
        target_modules: names or a pattern of the layers; all linear ones but the output layer by default.
        modules_to_save: modules that train whole and are saved with the adapters.
        exclude_modules: pattern of layers that get no adapter after all.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        exclude_modules=exclude_modules,
    )
    return get_peft_model(model, config)


def is_adapted(model: Any) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model, "merge_and_unload")


def quantise(model: PreTrainedModel, part: nn.Module, bits: int, device: torch.device) -> None:
    """Put bitsandbytes' linear layers in the place of those of `part`, a part of `model`, and move them to `device`.

    Dettmers et al. 2023, "QLoRA" (arXiv 2305.14314). The layers come from any checkpoint that the model loads from.

    Args:
        bits: 4 (NF4, its scales quantised too) or 8 (LLM.int8, arXiv 2208.07339).
    """
    import bitsandbytes as bnb

    layers = {name: layer for name, layer in part.named_modules() if type(layer) is nn.Linear}
    for name, layer in layers.items():
        shape, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
        if bits == 4:
            new: Any = bnb.nn.Linear4bit(*shape, compute_dtype=weight.dtype, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
            if layer.out_features % 32 or layer.in_features % 64:
                # of a narrow model: the form that bitsandbytes repacks weights into on CPUs with AVX-512 BF16
                new.support_avx512bf16_for_cpu = False
        else:
            new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0)
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        part.set_submodule(name, new.to(device))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # what peft chooses its adapters by


def is_quantised(model: Any) -> bool:
    """True if the model's layers were quantised."""
    return getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)


def _gathered(trainer: Any) -> Any:
    """The adapted model with all its weights in this process.

    Where ZeRO-3 shards them or `quantise` made them small: a copy on the CPU, shards put together and weights as wide
    as before. The adapters were trained on what quantisation left of the weights, so that is what they are merged with.
    """
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    if not (is_quantised(adapted) or any(hasattr(parameter, "ds_id") for parameter in adapted.parameters())):
        return adapted
    return whole_copy(adapted, trainer.args)


def whole_copy(adapted: Any, training: Any) -> Any:
    """A copy of an adapted model on the CPU with all its weights and buffers, see `_gathered`."""
    from peft import get_peft_model
    from transformers.initialization import no_init_weights

    base = adapted.get_base_model()
    with unsharded(training), no_init_weights():
        fresh = type(base)(copy.deepcopy(base.config))
    if hasattr(base, "generation_config"):
        fresh.generation_config = copy.deepcopy(base.generation_config)
    whole = get_peft_model(fresh, copy.deepcopy(adapted.peft_config["default"]))
    for name, parameter in whole.named_parameters():
        owner, _, leaf = name.rpartition(".")
        parameter.data = _whole_weight(adapted.get_submodule(owner), leaf, base.dtype)
    kept = dict(adapted.named_buffers())
    for name, buffer in whole.named_buffers():
        if name in kept and kept[name].shape == buffer.shape:  # the means of batch norms among them
            buffer.data = kept[name].detach().cpu().clone()
    return whole


def _whole_weight(module: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
    parameter = getattr(module, name)
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    if not type(parameter).__module__.startswith("bitsandbytes"):
        return parameter.detach().cpu()
    from peft.utils.integrations import dequantize_module_weight

    module.state_dict()  # undoes the order that bitsandbytes gives the weights on a CPU, of which peft does not know
    return dequantize_module_weight(module).detach().to("cpu", dtype)


@torch.no_grad()
def write_merged(trainer: Any, folder: Path, tolerance: float = 1e-3) -> None:
    """Write the plain model with the adapters merged in to `folder`; the adapters move to `folder/adapter`.

    Args:
        trainer: a `MedVLMTrainer` with an adapted model.
        tolerance: of the logits, in float32; half precision and quantised weights are held to 5 % of the largest one.

    Raises:
        ValueError: the logits of the merged model differ from the adapted one's by more than `tolerance`.
    """
    batch = trainer.data_collator([trainer.train_dataset[0]])
    quantised = is_quantised(trainer.model)
    # before its weights are taken out, after which bitsandbytes' 8-bit layers may not run any more
    before = _logits(trainer.evaluation_model(), batch) if quantised else None
    adapted = _gathered(trainer).eval()
    if before is None:
        before = _logits(adapted, batch)
    merged = adapted.merge_and_unload().eval()
    difference = (_logits(merged, batch) - before).abs().max().item()
    exact = merged.dtype == torch.float32 and not quantised
    if difference > (tolerance if exact else 0.05 * before.abs().max().item()):
        raise ValueError(
            f"merged and adapted model differ by {difference:.2g} in their logits; the adapter is in {folder}"
        )
    if trainer.is_world_process_zero():
        (folder / ADAPTER_FOLDER).mkdir(exist_ok=True)
        for path in folder.glob("adapter_*"):
            shutil.move(path, folder / ADAPTER_FOLDER / path.name)
        merged.save_pretrained(folder)


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits of a batch, or the embeddings where a model has no logits for a single study."""
    parameter = next(model.parameters())
    inputs = {
        name: value.to(parameter.device, parameter.dtype if name == "pixel_values" else None)
        for name, value in batch.items()
        if torch.is_tensor(value) and name != "pair_ids"
    }
    output = model(**inputs)
    logits = output.get("logits")
    return (output.image_embeds if logits is None else logits).float().cpu()
