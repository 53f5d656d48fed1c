"""Samples of several lengths -> one batch: padded to the longest, or packed into one row without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_medvlm.labels import IGNORE_INDEX

Sample = dict[str, list[int]]


def pad(samples: Sequence[Sample], pad_token_id: int | None, left: bool = False) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, all (B, T), T the longest sample.

    Args:
        samples: `input_ids` and `labels`, equally long.
        left: padding in front, as `generate` wants it.

    Raises:
        ValueError: the tokenizer has no padding token.
    """
    if pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; name one in its tokenizer_config.json (pad_token)")
    width = max(len(sample["input_ids"]) for sample in samples)
    batch = {
        "input_ids": torch.full((len(samples), width), pad_token_id),
        "attention_mask": torch.zeros(len(samples), width, dtype=torch.long),
        "labels": torch.full((len(samples), width), IGNORE_INDEX),
    }
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        place = slice(width - length, width) if left else slice(length)
        batch["input_ids"][row, place] = torch.tensor(sample["input_ids"])
        batch["attention_mask"][row, place] = 1
        batch["labels"][row, place] = torch.tensor(sample["labels"])
    return batch


def pack(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """`input_ids`, `position_ids` and `labels`, all (1, T), T the sum of the lengths: no padding at all.

    Positions begin again at 0 with each sample. From that, and only where there is no attention mask, transformers
    makes attention masks (or, with flash attention, sequence lengths) by which no sample sees another. The first token
    of a sample is never a target: it would be predicted from the last one of its neighbour.
    """
    labels = [label for sample in samples for label in [IGNORE_INDEX, *sample["labels"][1:]]]
    return {
        "input_ids": torch.tensor([[token for sample in samples for token in sample["input_ids"]]]),
        "position_ids": torch.cat([torch.arange(len(sample["input_ids"])) for sample in samples]).unsqueeze(0),
        "labels": torch.tensor([labels]),
    }
