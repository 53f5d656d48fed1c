"""Studies -> batches for any chat model: one call of its own processor a batch, of which every tensor is passed on.

Nothing is shuffled, sliced or padded by row but what has one entry a token: families lay out pixels in many ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_medvlm.data.conversations import ChatOptions, answer_of, turns_of, with_conversation
from hf_medvlm.data.images import augment, open_radiograph
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.families.chat.messages import encode_batch, encode_with_prompts
from hf_medvlm.families.chat.packed_rows import pack_rows
from hf_medvlm.families.chat.turns import Message, as_messages, with_stand_in

Encoder = Callable[[list[list[Message]], list[list[Image]]], Any]


@dataclass
class MessageCollator:
    """Reads a study's images in the order of their marks and encodes its conversation as the model's own template does.

    Args:
        processor: of `load_processor`.
        image_folder: what `StudyImage.path` is relative to; or path -> the picture itself, mode "L".
        max_length: tokens of a conversation at most, images included; text is cut at its end, an image never.
        options: how a study that has no conversation becomes one.
        system_prompt: put in front of conversations that have no system text.
        rope_index: packing: `get_rope_index` of models whose positions tell place in the image (Qwen-VL).
        packing: put all conversations of a training batch into one row without padding; none sees another.
        in_step: give batches without images an idle row with one, see `encode_batch`.
        training: augment the images.

    Example: `collator(studies)` gives `input_ids`, `labels`, `attention_mask` (B, T), and whatever else the processor
        makes for the model: `pixel_values`, `image_grid_thw`, `token_type_ids`, ...
    """

    processor: ProcessorMixin
    image_folder: str | Path | Mapping[str, Image]
    max_length: int = 2048
    options: ChatOptions = field(default_factory=ChatOptions)
    system_prompt: str = ""
    rope_index: Callable[..., Any] | None = None
    packing: bool = False
    in_step: bool = False
    training: bool = False
    seed: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's."""
        return self.processor.tokenizer

    def talk(self, study: Study) -> Study:
        """The study with its conversation."""
        return study if study.conversations else with_conversation(study, self.options)

    def target(self, study: Study) -> str:
        """The text that the model is to write: the last answer."""
        return answer_of(self.talk(study))

    def settings(self) -> dict[str, Any]:
        """What a prompt depends on and the model does not hold."""
        limits = {"max_length": self.max_length, "system_prompt": self.system_prompt}
        return limits | {"options": asdict(self.options)}

    def messages(self, study: Study) -> list[Message]:
        """The study's conversation as checked messages.

        Raises:
            ValueError: turns out of order, or another number of marks than images.
        """
        study = self.talk(study)
        messages = as_messages(turns_of(study), len(study.images))
        if self.system_prompt and messages[0]["role"] != "system":
            system = {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}
            messages = [system, *messages]
        return messages

    def pictures(self, row: Row) -> list[Image]:
        """The row's images, RGB."""
        pictures = []
        for image in row.study.images:
            if isinstance(self.image_folder, Mapping):
                picture = self.image_folder[image.path]
            else:
                picture = open_radiograph(Path(self.image_folder) / image.path)
            if self.training:
                picture = augment(picture, row.rng(self.seed))
            pictures.append(picture.convert("RGB"))
        return pictures

    def __call__(self, rows: Sequence[Row | Study]) -> dict[str, Tensor]:
        """The batch for the loss.

        Raises:
            ValueError: what `encode_messages` refuses; the message names the study.
        """

        def encode(messages: list[list[Message]], images: list[list[Image]]) -> dict[str, Tensor]:
            return encode_batch(messages, images, self.processor, self.max_length, self.in_step)

        batch = self._encode(rows, self.messages, encode)
        return pack_rows(batch, self.rope_index) if self.packing else batch

    def prompts(self, rows: Sequence[Row | Study]) -> dict[str, Tensor]:
        """The batch for `generate`: images and the conversation up to its last answer, which is not looked at.

        Raises:
            ValueError: as above, and a prompt longer than `max_length`.
        """

        def encode(messages: list[list[Message]], images: list[list[Image]]) -> dict[str, Tensor]:
            _, prompts = encode_with_prompts(messages, images, self.processor, None, self.in_step)
            longest = int(prompts["attention_mask"][: len(messages)].sum(1).max())
            if longest > self.max_length:
                raise ValueError(
                    f"its prompt has {longest} tokens, more than {self.max_length}; raise --model_max_length"
                )
            return prompts

        return self._encode(rows, lambda study: with_stand_in(self.messages(study)), encode)

    def with_prompts(self, rows: Sequence[Row | Study]) -> dict[str, dict[str, Tensor]]:
        """`loss` and `prompts` of the same rows, from one encoding: their images are read once."""

        def encode(messages: list[list[Message]], images: list[list[Image]]) -> Any:
            return encode_with_prompts(messages, images, self.processor, self.max_length, self.in_step)

        loss, prompts = self._encode(rows, self.messages, encode)
        return {"loss": loss, "prompts": prompts}

    def _encode(self, rows: Sequence[Row | Study], messages_of: Callable[[Study], Any], encode: Encoder) -> Any:
        given = [replace(row, study=self.talk(row.study)) for row in as_rows(rows)]
        pictures = [self.pictures(row) for row in given]
        try:
            return encode([messages_of(row.study) for row in given], pictures)
        except ValueError as error:
            for row, images in zip(given, pictures, strict=True):  # finds the one that is wrong
                try:
                    encode([messages_of(row.study)], [images])
                except ValueError as its_own:
                    raise ValueError(f"study {row.study.study_id!r:.100}: {its_own}") from its_own
            names = ", ".join(repr(row.study.study_id) for row in given[:8])
            raise ValueError(f"studies {names} do not fit into one batch: {error}") from error

    def token_counts(self, study: Study) -> tuple[int, list[int]]:
        """Tokens of the whole conversation before it is cut, and of each of its images, on average."""
        row = as_rows([self.talk(study)])[0]
        batch = encode_batch([self.messages(row.study)], [self.pictures(row)], self.processor)
        is_image = torch.isin(batch["input_ids"][0], torch.tensor(image_ids(self.processor)))
        total, count = int(is_image.sum()), len(row.study.images)
        return batch["input_ids"].shape[1], [total // count] * count if count else []


def image_ids(processor: ProcessorMixin) -> list[int]:
    """The ids that stand for image content."""
    ids = [i for i in getattr(processor, "image_token_ids", []) if i is not None]
    return ids or [getattr(processor, "image_token_id", -1)]
