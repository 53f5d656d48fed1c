"""Any chat model of transformers as it is: its parts by name, what of it trains, LoRA on its decoder, and its loss.

The model stays the stock class, so what is saved is what upstream saves. Knows no tokenizer and no conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hf_medvlm.families.chat.processors import PALIGEMMA
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.losses import token_losses
from hf_medvlm.models.loading import find_folder, load_config, load_strictly, model_type_of
from hf_medvlm.models.towers import freeze

VISION, CONNECTOR, LANGUAGE = "vision", "connector", "language"
PARTS = (VISION, CONNECTOR, LANGUAGE)
READS_HIDDEN_STATES = ("llava", "llava_next", "llava_onevision", "vipllava", "mistral3", "internvl")
"""Their connector reads the hidden state `vision_feature_layer` of the tower, not its output."""
INSIDE_TOWER = r"\w*merger\w*"  # Qwen-VL's connector lies in its vision tower


@dataclass(frozen=True)
class ChatParts:
    """Where the parts of a chat model are, by the names of its modules.

    Args:
        decoder: the language model. vision: the vision tower.
        connector: modules between them; `bare`: parameters of the connector outside any of these.
        unread: modules of the tower behind the hidden state that the connector reads; no loss reaches them.
    """

    decoder: str
    vision: str
    connector: tuple[str, ...]
    bare: tuple[str, ...]
    unread: tuple[str, ...]

    def part_of(self, parameter: str) -> str:
        """The part of a parameter, by its name in the model or in peft's wrapper."""
        name = parameter.removeprefix("base_model.model.")
        if _under(name, self.connector) or name in self.bare:
            return CONNECTOR
        return VISION if _under(name, (self.vision,)) else LANGUAGE


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def load_stock(folder: str | Path, dtype: torch.dtype, shapes_only: bool = False) -> PreTrainedModel:
    """The chat model of a folder or Hub id, every key in its place.

    Args:
        shapes_only: build it on the meta device, from `config.json` alone: sizes and names without weights.

    Raises:
        ValueError: no chat model, one whose family has no chat template, or weights that do not fit.
    """
    kind = model_type_of(folder)
    if kind == "paligemma":
        raise ValueError(f"{folder}: {PALIGEMMA}")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"{folder} holds a {kind!r} checkpoint, which is no chat model of this transformers "
            "(AutoModelForImageTextToText)"
        )
    if shapes_only:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(load_config(folder), dtype=dtype)
        if (find_folder(folder, weights=False) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(find_folder(folder, weights=False))
        return model
    return load_strictly(AutoModelForImageTextToText, find_folder(folder), dtype=dtype)


def parts_of(model: PreTrainedModel) -> ChatParts:
    """Find the parts of a stock chat model.

    Raises:
        ValueError: it does not say which module is its decoder or its vision tower; the message names its modules.
    """
    names = {id(module): name for name, module in model.named_modules()}
    decoder = names.get(id(model.get_decoder()))
    vision = names.get(id(model.get_encoder(modality="image")))
    if not decoder or not vision or decoder == vision:
        children = ", ".join(name for name, _ in getattr(model, "model", model).named_children())
        raise ValueError(f"{type(model).__name__} does not say where its parts are; its modules are {children}")
    outside = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    inside = re.compile(rf"{re.escape(vision)}\.{INSIDE_TOWER}(\.|$)")

    def is_connector(parameter: str) -> bool:
        if inside.match(parameter):
            return True
        return not _under(parameter, (decoder, vision)) and not _under(parameter, heads)

    heads = tuple(name for name, module in model.named_modules() if id(module) in outside)
    wanted = {name for name, _ in model.named_parameters() if is_connector(name)}
    modules: list[str] = []
    for name, module in model.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))  # peft wraps their members, not them
        if name and own and own <= wanted and not is_list and not _under(name, modules):
            modules.append(name)
    bare = tuple(sorted(name for name in wanted if not _under(name, modules)))
    return ChatParts(decoder, vision, tuple(modules), bare, _unread(model, vision))


def _unread(model: PreTrainedModel, vision: str) -> tuple[str, ...]:
    """What no loss reaches: SigLIP's pooling head, and what lies behind the hidden state that the connector reads."""
    tower = model.get_submodule(vision)
    found = [f"{vision}.head"] if hasattr(getattr(tower, "head", None), "probe") else []
    chosen = getattr(model.config, "vision_feature_layer", None)
    lists = [(name, module) for name, module in tower.named_modules() if isinstance(module, nn.ModuleList)]
    if model.config.model_type not in READS_HIDDEN_STATES or chosen is None or not lists:
        return tuple(found)
    name, layers = max(lists, key=lambda item: len(item[1]))
    last = max(layer % (len(layers) + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    found += [f"{vision}.{name}.{number}" for number in range(last, len(layers))]
    return (*found, *([f"{vision}.post_layernorm"] if hasattr(tower, "post_layernorm") else []))


def set_trainable(model: PreTrainedModel, parts: ChatParts, trained: Iterable[str]) -> None:
    """Gradients for the parts `trained` alone; what is frozen stays in evaluation mode.

    Raises:
        ValueError: a part that is none of `PARTS`, or none at all.
    """
    chosen = set(trained)
    if not chosen or chosen - set(PARTS):
        raise ValueError(f"--train {','.join(sorted(chosen))!r}: name one or more of {', '.join(PARTS)}")
    for part, name in ((LANGUAGE, parts.decoder), (VISION, parts.vision)):
        freeze(model.get_submodule(name), part not in chosen)
    for name in parts.connector:  # after the tower, which may hold them
        freeze(model.get_submodule(name), CONNECTOR not in chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parts.part_of(name) in chosen and not _under(name, parts.unread))


def add_chat_lora(
    model: PreTrainedModel,
    parts: ChatParts,
    rank: int,
    alpha: int | None,
    dropout: float,
    trained: Iterable[str],
    checkpointing: bool = False,
) -> Any:
    """Adapters on every linear layer of the decoder, and of it alone: "all-linear" would take the vision tower too.

    The output head keeps no adapter (it may be tied to the embeddings). Connector and vision tower, where they train,
    train whole and are saved with the adapters. Bare parameters (LLaVA-NeXT's `image_newline`) stay frozen.
    """
    from hf_medvlm.training.lora import add_lora

    decoder = model.get_submodule(parts.decoder)
    leaves = {
        name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear) and name
    }
    chosen = set(trained)
    whole = [*parts.connector] if CONNECTOR in chosen else []
    if VISION in chosen:
        raise ValueError("--train vision with --lora_rank: the vision tower trains whole or not; leave one of them out")
    if checkpointing:
        model.enable_input_require_grads()  # or no gradient would pass a checkpointed layer whose weights are frozen
    for name in whole:
        _train_in_float32(model.get_submodule(name))
    pattern = rf"{re.escape(parts.decoder)}\.(.*\.)?({'|'.join(sorted(map(re.escape, leaves)))})"
    return add_lora(model, rank, alpha, dropout, target_modules=pattern, modules_to_save=whole or None)


def _train_in_float32(module: nn.Module) -> None:
    """In bfloat16 small steps round to nothing. What comes in is cast; DeepSpeed keeps a float32 copy of its own."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return
    module.float()

    def cast(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(map(_as_float32, args)), {name: _as_float32(value) for name, value in kwargs.items()}

    module.register_forward_pre_hook(cast, with_kwargs=True)


def _as_float32(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


@dataclass
class ChatObjective:
    """Next-token cross-entropy over the supervised columns only, in float32; a mean over the global batch.

    What `training.objective.TokenObjective` gives, to the bit; but logits are made for the columns that some row of the
    batch is supervised in (`logits_to_keep`), which is most of the memory of a large vocabulary.
    """

    def count(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tokens`: the supervised tokens; the first token of a row is never predicted."""
        return {"tokens": (batch["labels"][:, 1:] != IGNORE_INDEX).sum()}

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], denominators: Mapping[str, Tensor] | None = None
    ) -> Any:
        """As `training.objective.Objective`; `per_study` holds `nll` (summed, in nats) and `tokens`."""
        from hf_medvlm.training.objective import ObjectiveOutput

        labels = batch["labels"]
        columns = (labels[:, 1:] != IGNORE_INDEX).any(0).nonzero()[:, 0]  # each predicts the next
        if not len(columns):
            columns = columns.new_zeros(1)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        # A cache would let the samples of a packed row see one another.
        outputs = model(**inputs, use_cache=False, logits_to_keep=columns)
        targets = labels[:, columns + 1]
        # token_losses shifts by one: a column in front, whose target is not read, makes up for it
        shifted = torch.cat((targets.new_full((len(targets), 1), IGNORE_INDEX), targets), 1)
        nll, tokens = token_losses(torch.cat((outputs.logits, outputs.logits[:, -1:]), 1), shifted)
        total = tokens.sum() if denominators is None else denominators["tokens"]
        loss = nll.sum() / total.clamp(min=1)
        return ObjectiveOutput(
            loss=loss,
            loss_terms={"cross_entropy": loss.detach()},
            per_study={"nll": nll.detach(), "tokens": tokens},
            outputs=outputs,
        )
