"""Where a LLaVA looks for each word: its attention to the image's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_medvlm.families.chat.model import LlavaReporter


def word_attention(model: LlavaReporter, prompts: Mapping[str, Tensor], row: int, ids: Tensor) -> Tensor:
    """`evaluation.attention.WordAttention` of a LLaVA.

    Raises:
        ValueError: the row shows another number of images than one.
    """
    is_image = prompts["input_ids"] == model.config.image_token_id
    images = is_image.sum(1) // model.image_tokens  # (B,)
    if images[row] != 1:
        raise ValueError(f"the prompt shows {int(images[row])} images; where it looked is told of one image")
    place = int(images[:row].sum())
    prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]  # without the padding on the left
    whole = torch.cat((prompt, ids))[None]
    language = model.model.language_model
    with eager_attention(language):
        embeds = model.embed(whole, prompts["pixel_values"][place : place + 1])
        attention = language(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
    mean = torch.stack([layer[0].mean(0) for layer in attention]).mean(0)  # (T, T)
    columns = (whole[0] == model.config.image_token_id).nonzero().flatten()
    if model.config.vision_feature_select_strategy == "full":
        vision: Any = model.config.vision_config
        columns = columns[model.image_tokens - (vision.image_size // vision.patch_size) ** 2 :]
    asked = len(prompt) - 1
    return mean[asked : asked + len(ids)][:, columns]


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that gives its weights away, in place of a faster one."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
