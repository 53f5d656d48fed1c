"""Conversations -> batches for `LlavaReporter`: answers supervised, images whole, rows padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaProcessor, PreTrainedTokenizerBase

from hf_medvlm.collators.packing import pack, pad
from hf_medvlm.collators.pixels import read_pixels
from hf_medvlm.data.conversations import ChatOptions, answer_of, turns_of, with_conversation
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.errors import clipped
from hf_medvlm.families.chat.templates import (
    TEMPLATES,
    check_chat_vocabulary,
    encode_conversation,
    encode_conversations,
    encode_questions,
)
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX

__all__ = ["ChatCollator", "encode_conversation", "encode_conversations", "encode_questions"]


def image_tokens(processor: LlavaProcessor) -> int:
    """Tokens that one image takes in a prompt, by the processor's own numbers.

    Raises:
        ValueError: one of those numbers is missing, or is none; the message names it.
    """
    side, cut = processor.patch_size, processor.vision_feature_select_strategy == "default"
    size = getattr(processor.image_processor, "crop_size", None) or {}
    sides = [size.get(name) if isinstance(size, Mapping) else getattr(size, name, None) for name in ("height", "width")]
    numbers = {"patch_size": side, "crop_size height": sides[0], "crop_size width": sides[1]}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} of LLaVA's processor must be a whole number of pixels, found {clipped(value)}")
    patches = (sides[0] // side) * (sides[1] // side)
    return patches + processor.num_additional_image_tokens - cut


@dataclass
class ChatCollator:
    """Reads a study's images in the order of its `<image>` marks and encodes its conversation.

    Args:
        processor: image processor and tokenizer; its `<image>` token must be the model's `image_token_id`.
        image_folder: what `StudyImage.path` is relative to.
        template: one of `TEMPLATES`.
        max_length: tokens of a conversation at most, images included; the text is cut at its end, an image never.
        options: how a study that has no conversation becomes one.
        packing: put all conversations of a batch into one row without padding; none sees another.
        training: augment the images.

    Example: one study whose image takes 2 tokens (id 9), begin 1, end 2, answer 7 8, gives
        `input_ids` [[1, 5, 9, 9, 6, 7, 8, 2]], `labels` [[-100, -100, -100, -100, -100, 7, 8, 2]],
        `attention_mask` (ones; with packing `position_ids` instead), `pixel_values` (1, 3, H, W; none without images).
    """

    processor: LlavaProcessor
    image_folder: str | Path
    template: str = "v1"
    max_length: int = 2048
    options: ChatOptions = field(default_factory=ChatOptions)
    packing: bool = False
    training: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(
                f"there is no chat template {self.template!r:.100}; --version is one of {', '.join(TEMPLATES)}"
            )
        check_chat_vocabulary(self.tokenizer, self.template)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's."""
        return self.processor.tokenizer

    @property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        return image_tokens(self.processor)

    def talk(self, study: Study) -> Study:
        """The study with its conversation."""
        return study if study.conversations else with_conversation(study, self.options)

    def target(self, study: Study) -> str:
        """The text that the model is to write: the last answer."""
        return answer_of(self.talk(study))

    def settings(self) -> dict[str, Any]:
        """What a prompt depends on and the model does not hold."""
        return {"template": self.template, "max_length": self.max_length, "options": asdict(self.options)}

    def encode(self, study: Study) -> dict[str, list[int]]:
        """`input_ids` with images expanded, and `labels`.

        Raises:
            ValueError: a conversation that cannot be encoded, whose images do not fit, or in which nothing is
                supervised; the message names the study.
        """
        return self._encode([self.talk(study)])[0]

    def _encode(self, studies: Sequence[Study]) -> list[dict[str, list[int]]]:
        try:
            encoded = encode_conversations(
                [turns_of(study) for study in studies],
                self.tokenizer,
                self.template,
                self.max_length,
                images=[len(study.images) for study in studies],
                image_tokens=self.image_tokens,
            )
        except ValueError as error:
            if len(studies) == 1:
                raise ValueError(f"study {studies[0].study_id!r:.100}: {error}") from error
            return [self.encode(study) for study in studies]  # finds the one that is wrong
        for study, sample in zip(studies, encoded, strict=True):
            if all(label == IGNORE_INDEX for label in sample["labels"][1:]):
                raise ValueError(
                    f"study {study.study_id!r:.100}: nothing is supervised; its answers are empty, or the "
                    f"{self.max_length} tokens end before the first of them (raise --model_max_length)"
                )
        return [self._expand(sample) for sample in encoded]

    def _expand(self, sample: dict[str, list[int]]) -> dict[str, list[int]]:
        """Every `IMAGE_TOKEN_INDEX` as the image's tokens."""
        ids, labels = [], []
        for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
            times = self.image_tokens if token == IMAGE_TOKEN_INDEX else 1
            ids += [self.processor.image_token_id if token == IMAGE_TOKEN_INDEX else token] * times
            labels += [label] * times
        return {"input_ids": ids, "labels": labels}

    def __call__(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        rows = self._rows(items)
        samples = self._encode([row.study for row in rows])
        batch = pack(samples) if self.packing else pad(samples, self.tokenizer.pad_token_id)
        return batch | self.pixels(rows)

    def prompts(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        """The batch for `generate`: images and the conversation up to its last answer, padded on the left.

        Raises:
            ValueError: a prompt is longer than `max_length`.
        """
        rows = self._rows(items)
        samples = []
        for row in rows:
            study = row.study
            ids = encode_questions(turns_of(study), self.tokenizer, self.template, len(study.images))
            sample = self._expand({"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)})
            if len(sample["input_ids"]) > self.max_length:
                raise ValueError(
                    f"study {study.study_id!r:.100}: its prompt has {len(sample['input_ids'])} tokens, more than "
                    f"{self.max_length}; raise --model_max_length"
                )
            samples.append(sample)
        batch = pad(samples, self.tokenizer.pad_token_id, left=True)
        del batch["labels"]
        return batch | self.pixels(rows)

    def _rows(self, items: Sequence[Row | Study]) -> list[Row]:
        return [replace(row, study=self.talk(row.study)) for row in as_rows(items)]

    def pixels(self, rows: list[Row]) -> dict[str, Tensor]:
        """`pixel_values` (N, 3, H, W) of all images of the batch, in order; nothing for a batch without images."""
        images = [(row, image) for row in rows for image in row.study.images]
        if not images:
            return {}
        return read_pixels(images, self.image_folder, self.processor.image_processor, self.training, self.seed)
