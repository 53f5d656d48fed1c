"""Where a model that writes looked while it wrote: attention of a sentence's words to the patches of the image.

It shows what the words were read from, which is not why they were written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_medvlm.language.findings import label_report
from hf_medvlm.language.sections import sentences
from hf_medvlm.models.towers import inside_peft

WordAttention = Callable[[Any, Mapping[str, Tensor], int, Tensor], Tensor]
"""(model, prompts of a batch, row, ids (T,) that follow its prompt) -> (T, P): where each was looked for, before it was
written, mean over layers and heads; P patches of a square."""
MEANING = "attention of the words to the patches, mean over layers, heads and words, sums to 1"


def written_findings(text: str) -> list[str]:
    """The sentences of a report that say a finding is there, each once, in their order."""
    names = [
        sentence
        for sentence in sentences(text)
        if any(state == 1 and name != "No Finding" for name, state in label_report(sentence).items())
    ]
    return list(dict.fromkeys(names))


def phrase_maps(
    look: WordAttention,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Tensor],
    row: int,
    text: str,
    phrases: Sequence[str],
) -> dict[str, Tensor]:
    """phrase -> its map (h, w) on the CPU, float32, sums to 1.

    Args:
        prompts: of a batch; `row` is the study's. text: the report, in which a phrase stands; a phrase that does not is
            looked for as if the model had written it alone.
    """
    model = inside_peft(model)
    maps: dict[str, Tensor] = {}
    for written in dict.fromkeys(text if phrase in text else phrase for phrase in phrases):
        ids, offsets = _encode(tokenizer, written)
        attention = look(model, prompts, row, ids.to(prompts["input_ids"].device)).float().cpu()
        for phrase in phrases:
            if (text if phrase in text else phrase) == written:
                maps[phrase] = _square(attention[_places(written, phrase, offsets)])
    return {phrase: maps[phrase] for phrase in phrases}


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """Ids (T,) of a text and the characters of each."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]


def _places(text: str, phrase: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens of a phrase in a text."""
    start = text.find(phrase)
    return [i for i, (first, last) in enumerate(offsets) if first < start + len(phrase) and last > start]


def _square(attention: Tensor) -> Tensor:
    """(words, P) -> (h, w), sums to 1."""
    mean = attention.mean(0)
    side = math.isqrt(len(mean))
    return (mean / mean.sum().clamp_min(1e-12)).view(side, side)
