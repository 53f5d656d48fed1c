"""Studies -> batches for the captioners: one frontal image, the report's tokens, padding and prompt masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from hf_medvlm.collators.pixels import read_pixels
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.labels import IGNORE_INDEX


@dataclass
class CaptionCollator:
    """Reads the frontal image, tokenises the report, masks what is not to be learnt.

    Args:
        processor: image processor and tokenizer of the captioner.
        image_folder: what `StudyImage.path` is relative to.
        first_token: the id a text starts with (`Captioner.first_token`), which for BLIP is not the tokenizer's own.
        sections: the parts of the study that are the target, as `Study.text` takes them.
        prompt: text in front of every report; given to `generate`, never supervised.
        max_length: tokens of a batch at most, prompt and end token included; longer reports are cut.
        training: augment the images.

    Example: two studies, `max_length=8`, pad id 0, end id 3 give
        `pixel_values` (2, 3, H, W), `input_ids` [[2, 7, 9, 3], [2, 7, 3, 0]],
        `attention_mask` [[1, 1, 1, 1], [1, 1, 1, 0]], `labels` [[-100, 7, 9, 3], [-100, 7, 3, -100]].
    """

    processor: ProcessorMixin
    image_folder: str | Path
    first_token: int
    sections: str | tuple[str, ...] = ALL_TEXT
    prompt: str = ""
    max_length: int = 128
    training: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        room = self.max_length - len(self.prompt_ids)
        if room < 2:
            raise ValueError(
                f"the prompt {self.prompt!r:.100} takes {len(self.prompt_ids)} of max_length={self.max_length} tokens "
                "and leaves no room for a report; raise --max_length or shorten --prompt"
            )

    @property
    def prompt_ids(self) -> list[int]:
        """The start token and the prompt's tokens."""
        return [self.first_token, *self.processor.tokenizer(self.prompt, add_special_tokens=False).input_ids]

    def target(self, study: Study) -> str:
        """The text that the model is to write."""
        return study.text(self.sections)

    def settings(self) -> dict[str, Any]:
        """What a prompt depends on and the model does not hold."""
        sections = self.sections if isinstance(self.sections, str) else ",".join(self.sections)
        return {"prompt": self.prompt, "max_length": self.max_length, "sections": sections}

    def __call__(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        rows = as_rows(items)
        tokenizer, prompt = self.processor.tokenizer, self.prompt_ids
        bodies = tokenizer([self.target(row.study) for row in rows], add_special_tokens=False).input_ids
        room = self.max_length - len(prompt) - 1
        sequences = [prompt + body[:room] + [tokenizer.sep_token_id] for body in bodies]
        width = max(map(len, sequences))
        input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for number, sequence in enumerate(sequences):
            input_ids[number, : len(sequence)] = torch.tensor(sequence)
            attention_mask[number, : len(sequence)] = 1
        labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
        labels[:, : len(prompt)] = IGNORE_INDEX
        return {
            **self.pixels(rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        }

    def prompts(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        """The batch for `generate`: images and prompt only. One prompt for all, so nothing is padded."""
        rows = as_rows(items)
        input_ids = torch.tensor([self.prompt_ids]).repeat(len(rows), 1)
        return {**self.pixels(rows), "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def pixels(self, rows: list[Row]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W), the frontal image of each study."""
        images = [(row, row.study.frontal) for row in rows]
        return read_pixels(images, self.image_folder, self.processor.image_processor, self.training, self.seed)
