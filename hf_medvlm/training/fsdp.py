"""FSDP2: parameters, gradients and moments sharded by PyTorch itself, chosen by accelerate's own configuration file.

accelerate shards a model by its `_no_split_modules`, and its embeddings apart. That fails for models of several parts
(BLIP's embeddings stand in such a module, and are tied to a head that the outer model does not name). So the layers, as
the members of a `ModuleList` that have parameters, are sharded here, and with the root what is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

METHODS = ("generate", "get_image_features", "get_text_features")
"""What is called of a model besides `forward`."""


def shard_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Let accelerate know that FSDP is asked for where processes meet on CPUs: it would train whole, and not say so.

    Raises:
        ValueError: FSDP of version 1.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    asked = args.fsdp_plugin_args or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not asked or accelerator.num_processes == 1:
        return
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin(
        **(args.fsdp_plugin_args or {})
    )
    for state in (accelerator.state, PartialState()):  # the one is filled from the other again and again
        shared: Any = type(state)._shared_state
        shared |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP of version 1 is not taken; write fsdp_version: 2, as in ds_configs/fsdp2.yaml")


def shard_model(model: nn.Module, plugin: Any) -> None:
    """Shard the layers of a model, each by itself, and the rest of it, in place; accelerate then leaves it as it is.

    Each process gets a piece of every parameter: accelerate tells parameters apart by where their pieces lie.

    Raises:
        ValueError: a parameter that is trained and cannot be divided among the processes.
    """
    from torch.distributed import get_world_size
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    if isinstance(model, FSDPModule):
        return
    processes = get_world_size()
    dims = {parameter: divided_dim(parameter.shape, processes) for parameter in model.parameters()}
    whole = [name for name, each in model.named_parameters() if dims[each] is None and each.requires_grad]
    if whole:
        raise ValueError(
            f"FSDP2 cannot divide {whole[0]} among {processes} processes ({len(whole)} such parameters of "
            f"{type(model).__name__}); take --deepspeed ds_configs/zero3.json, or torchrun alone"
        )
    options: dict[str, Any] = {
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "shard_placement_fn": lambda parameter: Shard(dims[parameter] or 0),
        "ignored_params": {parameter for parameter, dim in dims.items() if dim is None},
    }
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    plugin.auto_wrap_policy = None
    for layer in layers_of(model):
        fully_shard(layer, reshard_after_forward=bool(plugin.reshard_after_forward), **options)
    fully_shard(model, **options)
    for name in METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def divided_dim(shape: Sequence[int], processes: int) -> int | None:
    """The dimension along which each process gets a piece that is not empty, the first if it can be; None if none can.

    The first is cut as `torch.chunk` cuts, with a smaller last piece; PyTorch wants equal pieces of the others.
    """
    if shape and shape[0] > 0 and -(-shape[0] // -(-shape[0] // processes)) == processes:
        return 0
    return next((dim for dim, size in enumerate(shape) if dim and size and size % processes == 0), None)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of all parts, the inner ones first; none that shares a parameter with what is outside it."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    layers = []
    for module in model.modules():
        for layer in module if isinstance(module, nn.ModuleList) else ():
            parameters = list(layer.parameters())
            if parameters and all(users[id(parameter)] == 1 for parameter in parameters):
                layers.append(layer)
    return layers[::-1]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds the whole model, so that each may call what it likes, as often as it likes."""
    from torch.distributed.fsdp import FSDPModule

    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard is not model, recurse=False)
