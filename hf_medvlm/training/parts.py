"""The parts of a model by name: vision, connector, language. What of it trains, LoRA, and learning rates of parts.

Works on any class: our models say where their parts are (`part_modules`), those of transformers are asked
(`get_decoder`, `get_encoder`). The connector is all that is neither tower: projections, fusion, heads, temperature.
Freezing is a property of the run. It survives `.train()` and loading, and nothing of it is saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_medvlm.models.towers import inside_peft, stay_in_evaluation
from hf_medvlm.training.arguments import option, split_names
from hf_medvlm.training.lora import add_lora

VISION, CONNECTOR, LANGUAGE = "vision", "connector", "language"
PARTS = (VISION, CONNECTOR, LANGUAGE)
PEFT_PREFIX = "base_model.model."

VISION_NAMES = ("image_encoder", "vision_tower", "vision_model", "visual")
READS_HIDDEN_STATES = ("llava", "llava_next", "llava_onevision", "vipllava", "mistral3", "internvl")
"""Their connector reads the hidden state `vision_feature_layer` of the tower, not its output."""
INSIDE_TOWER = r"\w*merger\w*"  # Qwen-VL's connector lies in its vision tower
MASK_TOKEN = "mask_token"  # serves masked pretraining alone
BRIDGE = re.compile(r"project|connector|adapter|aligner|merger|temporal_embedding")


TRAIN_HELP = "parts that train, separated by commas: vision, connector, language; or all"


@dataclass
class PartArguments:
    """Which parts of the model train, and how."""

    train: str = option("all", TRAIN_HELP)
    freeze_vision: bool = option(False, "do not train the vision tower")
    freeze_language: bool = option(False, "do not train the language model or text tower")
    lora_rank: int = option(
        0, "above 0: the towers in --train learn by LoRA adapters of this rank, the connector still as a whole"
    )
    lora_alpha: int | None = option(None, "scale of the LoRA adapters; twice --lora_rank by default")
    lora_dropout: float = option(0.05, "dropout in front of the LoRA adapters")
    merge_lora: bool = option(True, "with --lora_rank: write the merged plain model when done, the adapter beside it")

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"--lora_rank {self.lora_rank}: a rank is 1 or more; 0 trains without adapters")
        self.trained_parts()

    def trained_parts(self) -> tuple[str, ...]:
        """The parts of `--train` that no `--freeze_...` takes out.

        Raises:
            ValueError: a name that is no part, or nothing is left to train.
        """
        chosen = PARTS if self.train.strip() == "all" else split_names(self.train)
        if not chosen or set(chosen) - set(PARTS):
            raise ValueError(f"--train {self.train!r:.100}: name one or more of {', '.join(PARTS)}, by commas; or all")
        frozen = {VISION: self.freeze_vision, LANGUAGE: self.freeze_language}
        left = tuple(part for part in PARTS if part in chosen and not frozen.get(part))
        if not left:
            raise ValueError(f"--train {self.train} without the frozen parts leaves nothing to train")
        return left


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are, by the names of its modules.

    Args:
        vision, language: the modules of the two towers; a model may have none of either.
        connector: modules of the rest; `bare`: its parameters outside any module of the rest.
        unread: modules of the vision tower that no loss reaches.
    """

    vision: tuple[str, ...]
    language: tuple[str, ...]
    connector: tuple[str, ...]
    bare: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def decoder(self) -> str:
        """The language model's main module."""
        return self.language[0]

    def part_of(self, parameter: str) -> str:
        """The part of a parameter, by its name in the model or in peft's wrapper."""
        name = parameter.removeprefix(PEFT_PREFIX)
        if _under(name, self.connector) or name in self.bare:
            return CONNECTOR
        if _under(name, self.vision):
            return VISION
        return LANGUAGE if _under(name, self.language) else CONNECTOR

    def modules(self, part: str) -> tuple[str, ...]:
        """The module names of one part."""
        return {VISION: self.vision, LANGUAGE: self.language, CONNECTOR: self.connector}[part]


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


# ------------------------------------------------------------------------------------------- finding


def parts_of(model: PreTrainedModel) -> Parts:
    """Find the parts of a model, or of the model inside peft's wrapper.

    Raises:
        ValueError: the class does not say where its towers are; the message names its modules.
    """
    model = inside_peft(model)
    stated: Mapping[str, tuple[str, ...]] | None = getattr(model, "part_modules", None)
    if stated is None:
        vision, language = _stock_towers(model)
    else:
        have = {part: tuple(name for name in names if hasattr(model, name)) for part, names in stated.items()}
        vision, language = have.get(VISION, ()), have.get(LANGUAGE, ())
    inside = [re.compile(rf"{re.escape(name)}\.{INSIDE_TOWER}(\.|$)") for name in vision]

    def is_connector(parameter: str) -> bool:
        return any(p.match(parameter) for p in inside) or not _under(parameter, (*vision, *language))

    wanted = {name for name, _ in model.named_parameters() if is_connector(name)}
    modules: list[str] = []
    for name, module in model.named_modules():
        held = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList))  # peft wraps their members
        if name and held and held <= wanted and not is_list and not _under(name, modules):
            modules.append(name)
    bare = tuple(sorted(name for name in wanted if not _under(name, modules)))
    return Parts(vision, language, tuple(modules), bare, () if stated else _unread(model, vision[0]))


def _stock_towers(model: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modules of vision and language of a class of transformers, the decoder first."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder = names.get(id(model.get_decoder()))
    vision = names.get(id(model.get_encoder(modality="image"))) or first_named(model, VISION_NAMES)
    if not decoder or not vision or decoder == vision:
        modules = ", ".join(name for name, _ in getattr(model, "model", model).named_children())
        raise ValueError(
            f"{type(model).__name__} does not say where its parts are. Its modules are {modules}; name those of its "
            'towers in the class, as part_modules = {"vision": (...), "language": (...)}, () where it has none'
        )
    heads = [names[id(module)] for module in (model.get_input_embeddings(), *output_heads(model))]
    if vision.startswith(f"{decoder}."):  # GIT: one module holds the image encoder, a projection and the decoder
        children = [f"{decoder}.{name}" for name, _ in model.get_submodule(decoder).named_children()]
        towers = [c for c in children if not _under(vision, (c,)) and not BRIDGE.search(c.rpartition(".")[2])]
        towers.sort(key=lambda name: -sum(p.numel() for p in model.get_submodule(name).parameters()))
    else:
        towers = [decoder]
    return (vision,), (*towers, *dict.fromkeys(head for head in heads if not _under(head, towers)))


def first_named(model: nn.Module, wanted: tuple[str, ...]) -> str | None:
    """The module nearest to the root whose last name is in `wanted`."""
    matches = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in wanted]
    return min(matches, key=lambda name: name.count("."), default=None)


def output_heads(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that make logits of words: those a model names, and those tied to an embedding."""
    named = [m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)]
    words = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in words]
    return [*(head for head in named if head is not None), *tied]


def _unread(model: PreTrainedModel, vision: str) -> tuple[str, ...]:
    """What no loss reaches: SigLIP's pooling head, and what lies behind the hidden state that the connector reads."""
    tower = model.get_submodule(vision)
    unread = [f"{vision}.head"] if hasattr(getattr(tower, "head", None), "probe") else []
    chosen = getattr(model.config, "vision_feature_layer", None)
    lists = [(name, module) for name, module in tower.named_modules() if isinstance(module, nn.ModuleList)]
    if model.config.model_type not in READS_HIDDEN_STATES or chosen is None or not lists:
        return tuple(unread)
    name, layers = max(lists, key=lambda item: len(item[1]))
    last = max(layer % (len(layers) + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    unread += [f"{vision}.{name}.{number}" for number in range(last, len(layers))]
    return (*unread, *([f"{vision}.post_layernorm"] if hasattr(tower, "post_layernorm") else []))


# ------------------------------------------------------------------------------------------- freezing


def set_trainable(model: PreTrainedModel, parts: Parts, trained: Iterable[str]) -> None:
    """Gradients for the parts `trained` alone; what is frozen stays in evaluation mode, whatever `.train()` says.

    A parameter that had no gradient to begin with (no loss reaches it) gets none.

    Raises:
        ValueError: a part that is none of `PARTS`, or none at all.
    """
    chosen = set(trained)
    if not chosen or chosen - set(PARTS):
        raise ValueError(f"--train {','.join(sorted(chosen))!r:.100}: name one or more of {', '.join(PARTS)}")
    for part in (LANGUAGE, VISION, CONNECTOR):  # the connector last: a vision tower may hold it
        for name in parts.modules(part):
            stay_in_evaluation(model.get_submodule(name), part not in chosen)
    for name, weight in model.named_parameters():
        parameter: Any = weight
        reached = not _under(name, parts.unread) and not name.endswith(MASK_TOKEN)
        wanted = parts.part_of(name) in chosen and reached
        if parameter.requires_grad and not wanted:
            parameter.requires_grad_(False)
            parameter.frozen_by_run = True
        elif wanted and getattr(parameter, "frozen_by_run", False):
            parameter.requires_grad_(True)
            del parameter.frozen_by_run


def prepare_parts(model: PreTrainedModel, options: PartArguments, checkpointing: bool = False) -> Any:
    """The model as `options` want it trained: parts frozen, adapters in.

    Args:
        checkpointing: gradients are checkpointed, which needs gradients at the embeddings of a frozen tower.
    """
    parts, trained = parts_of(model), options.trained_parts()
    set_trainable(model, parts, trained)
    if not options.lora_rank:
        return model
    return add_part_lora(
        model, parts, options.lora_rank, options.lora_alpha, options.lora_dropout, trained, checkpointing
    )


# ------------------------------------------------------------------------------------------- adapters


def add_part_lora(
    model: PreTrainedModel,
    parts: Parts,
    rank: int,
    alpha: int | None,
    dropout: float,
    trained: Iterable[str],
    checkpointing: bool = False,
) -> Any:
    """Adapters on every linear layer of the towers in `trained`; of a tower without any (ResNet) on its convolutions.

    "all-linear" would take the other tower too. The output head keeps no adapter (it may be tied to the embeddings).
    The connector, where it trains, trains whole and is saved with the adapters; its bare parameters (a temperature,
    LLaVA-NeXT's `image_newline`) stay as they are.

    Raises:
        ValueError: none of the parts in `trained` is a tower.
    """
    chosen = set(trained)
    heads = {id(module) for module in output_heads(model)}
    patterns = []
    for part in (VISION, LANGUAGE):
        for tower in parts.modules(part) if part in chosen else ():
            module = model.get_submodule(tower)
            if id(module) not in heads and (leaves := _adapted_leaves(module, heads, parts, tower)):
                patterns.append(rf"{re.escape(tower)}\.(.*\.)?({'|'.join(sorted(map(re.escape, leaves)))})")
    if not patterns:
        raise ValueError("--lora_rank: no tower trains that could have adapters; name vision or language in --train")
    inside = tuple(name for name in parts.connector if _under(name, parts.vision))
    if checkpointing and LANGUAGE in chosen:
        model.enable_input_require_grads()  # or no gradient would pass a checkpointed layer whose weights are frozen
    whole = [name for name in parts.connector if CONNECTOR in chosen and _trains(model.get_submodule(name))]
    for name in whole:
        _train_in_float32(model.get_submodule(name))
    named_heads = [name for name, module in model.named_modules() if id(module) in heads]
    exclude = "|".join(rf"{re.escape(name)}(\..*)?" for name in (*inside, *parts.unread, *named_heads)) or None
    return add_lora(model, rank, alpha, dropout, f"({'|'.join(patterns)})", whole or None, exclude)


def _adapted_leaves(module: nn.Module, heads: set[int], parts: Parts, tower: str) -> set[str]:
    """The last names of the layers of a tower that get adapters."""
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if name and id(layer) not in heads and not _under(f"{tower}.{name}", (*parts.connector, *parts.unread))
    ]
    for kind in (nn.Linear, nn.Conv2d):
        if leaves := {name.rpartition(".")[2] for name, layer in layers if isinstance(layer, kind)}:
            return leaves
    return set()


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _train_in_float32(module: nn.Module) -> None:
    """In bfloat16 small steps round to nothing. What comes in is cast; DeepSpeed keeps a float32 copy of its own."""
    if is_deepspeed_zero3_enabled() or all(p.dtype == torch.float32 for p in module.parameters()):
        return
    module.float()

    module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _cast_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs in the module's own precision; DeepSpeed's bf16 mode takes it back to bfloat16."""
    dtype = next(parameter.dtype for parameter in module.parameters())

    def cast(value: Any) -> Any:
        return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


# ------------------------------------------------------------------------------------------- learning rates


def split_by_rate(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, rates: Mapping[str, float | None]
) -> torch.optim.Optimizer:
    """Each group of the optimizer split by the rates of parts; a part without a rate keeps the group's own.

    Args:
        rates: part -> learning rate, or None.
    """
    if all(rate is None for rate in rates.values()):
        return optimizer
    parts = parts_of(model)
    rate_of = {id(parameter): rates.get(parts.part_of(name)) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for rate in dict.fromkeys(rate_of[id(parameter)] for parameter in group["params"]):
            members = [parameter for parameter in group["params"] if rate_of[id(parameter)] == rate]
            groups.append(group | {"params": members, "lr": group["lr"] if rate is None else rate})
    optimizer.param_groups = groups
    return optimizer
