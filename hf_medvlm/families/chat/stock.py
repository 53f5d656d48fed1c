"""Any chat model of transformers as it is: how it is loaded, and its loss.

The model stays the stock class, so what is saved is what upstream saves. Knows no tokenizer and no conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            f"{folder} holds a {kind!r:.100} checkpoint, which is no chat model of this transformers "
            "(AutoModelForImageTextToText)"
        )
    if shapes_only:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(load_config(folder), dtype=dtype)
        if (find_folder(folder, weights=False) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(find_folder(folder, weights=False))
        return model
    auto: Any = AutoModelForImageTextToText  # its `from_pretrained` gives a model, of another class than itself
    return load_strictly(auto, find_folder(folder), dtype=dtype)


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
        from hf_medvlm.training.objective import mean_over_tokens

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
        return mean_over_tokens(nll, tokens, outputs, denominators)
