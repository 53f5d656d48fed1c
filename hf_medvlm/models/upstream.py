"""Thin subclasses of transformers' own models: their checkpoints are the upstream class's, and open without us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_medvlm.losses import token_losses
from hf_medvlm.models.towers import KeepsFrozen

OLD_PREFIX = "medvlm_"
"""What the `model_type` of our first versions began with: `medvlm_blip`, `medvlm_git`, `medvlm_llava`."""
OLD_OPTIONS = ("freeze_vision", "trains")
"""Properties of a run that those versions kept in the checkpoint's configuration."""


class SavedAsUpstream(KeepsFrozen):
    """Mix-in of a thin subclass. It adds behaviour, never weights: `config.json` names the upstream class.

    `from_pretrained` loads our folders, those of our first versions and upstream's.
    """

    @classmethod
    def upstream_class(cls) -> type[PreTrainedModel]:
        """The class of transformers that this one is built on."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', for the folders of our first versions too."""
        path = args[0] if args else kwargs["pretrained_model_name_or_path"]
        if kwargs.get("config") is None and (Path(path) / "config.json").is_file():
            content, _ = PreTrainedConfig.get_config_dict(path)
            if str(content.get("model_type")).startswith(OLD_PREFIX):
                for name in ("model_type", "architectures", *OLD_OPTIONS):
                    content.pop(name, None)
                assert cls.config_class is not None
                kwargs["config"] = cls.config_class.from_dict(content)
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """As transformers', with the upstream class as `architectures`."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        self.config.architectures = [self.upstream_class().__name__]
        if is_main_process and (Path(save_directory) / "config.json").is_file():
            self.config.save_pretrained(save_directory)


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Have `parameters` whole, to read and to change, where ZeRO-3 shards them; nothing to do elsewhere."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def token_mean(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """(), the loss that a thin subclass's `forward(labels=...)` gives, for use without our trainer.

    Args:
        logits: (B, T', vocabulary); the last T positions belong to the text.
        labels: (B, T), -100 where nothing is supervised.
        num_items_in_batch: the supervised tokens of all accumulated micro-batches, which the stock `Trainer` counts;
            by default this batch's own.
    """
    nll, tokens = token_losses(logits[:, -labels.shape[1] :], labels, label_smoothing)
    total = tokens.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return nll.sum() / total
