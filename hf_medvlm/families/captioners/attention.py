"""Where BLIP and GIT look for each word: BLIP by its cross-attention, GIT by its attention to the image's tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner


def word_attention(model: BlipCaptioner | GitCaptioner, prompts: Mapping[str, Tensor], row: int, ids: Tensor) -> Tensor:
    """`evaluation.attention.WordAttention` of a captioner; the class token of the image is left out."""
    prompt, pixels = prompts["input_ids"][row : row + 1], prompts["pixel_values"][row : row + 1]
    whole = torch.cat((prompt, ids[None]), dim=1)
    interpolate = model.needs_interpolation(pixels)
    if isinstance(model, BlipCaptioner):
        states = model.vision_model(pixels, interpolate_pos_encoding=interpolate).last_hidden_state
        attention = model.text_decoder(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            output_attentions=True,
        ).cross_attentions
        before = 0
    else:
        attention = model(input_ids=whole, pixel_values=pixels, output_attentions=True).attentions
        before = attention[0].shape[-1] - whole.shape[1]  # image tokens stand in front of the text's
    mean = torch.stack([layer[0].mean(0) for layer in attention]).mean(0)  # (queries, keys)
    asked = before + prompt.shape[1] - 1  # the place that writes the first of `ids`
    patches = mean.shape[1] if isinstance(model, BlipCaptioner) else before
    return mean[asked : asked + len(ids), 1:patches]
