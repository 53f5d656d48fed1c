"""Conversations of any chat model -> token ids, labels and pixels, by its own processor and chat template.

The rule: the template's text of the whole conversation is made once, and the text up to each answer once more. An
answer stands where the second ends, which holds only where one text begins with the other; everything else is refused
with the turn's number (`rendering.py`). The place is carried to tokens by the offsets that the processor gives, past
the images that it wrote out, so nothing is tokenised twice and every id is the processor's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from hf_medvlm.families.chat.processors import stop_ids
from hf_medvlm.families.chat.rendering import Rendered, notes, render
from hf_medvlm.families.chat.turns import STAND_IN, Message, as_messages
from hf_medvlm.labels import IGNORE_INDEX

log = logging.getLogger(__name__)
IDLE: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": STAND_IN}]},
    {"role": "assistant", "content": [{"type": "text", "text": STAND_IN}]},
]
"""The row that keeps the vision tower at work."""


def encode_messages(
    conversation: Sequence[Mapping[str, Any]],
    images: Sequence[Image],
    processor: ProcessorMixin,
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """One conversation as any chat model takes it.

    Args:
        conversation: `[{"from": "human" | "gpt", "value": "<image>\\n..."}]` or `{"role", "content"}`, see
            `as_messages`.
        images: flat, in the order of their marks.
        processor: of `load_processor`, or any other with a chat template and a fast tokenizer.
        max_length: tokens at most; text is cut at its end, an image never.

    Returns:
        `input_ids` and `labels` (1, T), `IGNORE_INDEX` but on the answers and their stop tokens, beside the processor's
        own tensors.

    Raises:
        ValueError: a conversation, template or length that cannot be encoded without guessing; it names the turn.
    """
    return encode_batch([as_messages(conversation, len(images))], [list(images)], processor, max_length)


def encode_batch(
    conversations: Sequence[Sequence[Message]],
    images: Sequence[Sequence[Image]],
    processor: ProcessorMixin,
    max_length: int | None = None,
    idle: bool = False,
) -> dict[str, Tensor]:
    """Checked messages of several conversations in one call of the processor, padded on the right.

    Args:
        idle: a batch without images gets a last row that has one and of which nothing is supervised. Vision tower and
            connector then run in every batch, which processes that work together (DDP, ZeRO-3) rely on.

    Raises:
        ValueError: as `encode_messages`.
    """
    return _encode(conversations, images, processor, max_length, idle)[0]


def encode_with_prompts(
    conversations: Sequence[Sequence[Message]],
    images: Sequence[Sequence[Image]],
    processor: ProcessorMixin,
    max_length: int | None = None,
    idle: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`encode_batch`, and the batch for `generate` from the same encoding: each row up to its last answer, padded left.

    Pixels, and all that is not one entry a token, are the same tensors in both.

    Raises:
        ValueError: as `encode_messages`; a prompt longer than `max_length`.
    """
    batch, starts = _encode(conversations, images, processor, max_length, idle)
    longest = max(starts[: len(conversations)])
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"a prompt has {longest} tokens, more than {max_length}; raise --model_max_length or shorten the text"
        )
    names, fill = token_wise(batch), {"input_ids": processor.tokenizer.pad_token_id or 0}
    prompts = {name: value for name, value in batch.items() if name not in names}
    width = max(starts)
    for name in names:
        if name != "labels":
            value = batch[name]
            padded = value.new_full((len(value), width, *value.shape[2:]), fill.get(name, 0))
            for row, length in enumerate(starts):
                padded[row, width - length :] = value[row, :length]
            prompts[name] = padded
    return batch, prompts


def _encode(
    conversations: Sequence[Sequence[Message]],
    images: Sequence[Sequence[Image]],
    processor: ProcessorMixin,
    max_length: int | None,
    idle: bool = False,
) -> tuple[dict[str, Tensor], list[int]]:
    """The batch, and for each row how many tokens stand before its last answer."""
    real = len(conversations)
    if idle and not any(images):
        conversations, images = [*conversations, IDLE], [*images, [new_image("RGB", (56, 56))]]
    rendered = [render(messages, processor) for messages in conversations]
    for added in {one.added for one in rendered if one.added}:
        _say_added(processor, added)
    batch = _process([one.text for one in rendered], images, processor)
    _refuse_uneven_images(batch, images)
    offsets = batch.pop("offset_mapping")
    replaced = batch.pop("text_replacement_offsets", None)
    if not isinstance(replaced, list) or not replaced:  # families that write no images out, or none in this batch
        replaced = [[] for _ in rendered]
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    stops, starts = torch.tensor(stop_ids(processor)), []
    for row, one in enumerate(rendered):
        _check_images(one, replaced[row], len(images[row]), processor)
        _check_length(one, replaced[row], offsets[row])
        inside = torch.zeros_like(labels[row], dtype=torch.bool)
        for start, end in one.answers:
            inside |= _overlap(offsets[row], _moved(start, replaced[row]), _moved(end, replaced[row]))
        inside |= _stop_of_tokenizer(batch, row, inside, stops)
        labels[row, inside] = batch["input_ids"][row, inside]
        answer = _overlap(offsets[row], _moved(one.asked, replaced[row]), _moved(len(one.text), replaced[row]))
        starts.append(int(answer.nonzero()[0]))
    labels[real:] = IGNORE_INDEX
    batch["labels"] = labels
    if max_length is not None and labels.shape[1] > max_length:
        for row in range(real):
            of_image = _image_columns(batch["input_ids"][row], offsets[row], replaced[row], processor)
            _cut_row(batch, row, of_image, processor, max_length)
        width = int(batch["attention_mask"].any(0).nonzero()[-1]) + 1
        batch |= {name: batch[name][:, :width] for name in token_wise(batch)}
    if not (batch["labels"][:real, 1:] != IGNORE_INDEX).any(1).all():
        limit = "" if max_length is None else f", or the {max_length} tokens end before the first of them"
        raise ValueError(f"nothing is supervised: the answers are empty{limit} (raise --model_max_length)")
    return batch, starts


def _refuse_uneven_images(batch: Mapping[str, Any], images: Sequence[Sequence[Image]]) -> None:
    """Rows with fewer images change beside rows with more, where images are read by cross-attention (Mllama)."""
    if "cross_attention_mask" in batch and len({len(row) for row in images}) > 1:
        counts = sorted({len(row) for row in images})
        raise ValueError(
            f"this model's rows must have equally many images in a batch, found {counts}; take batches of one, or "
            "studies with one number of images"
        )


def _process(texts: list[str], images: Sequence[Sequence[Image]], processor: ProcessorMixin) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets; this needs a fast tokenizer (tokenizer.json)")
    # as ProcessorMixin.apply_chat_template: a begin token comes from the template or from the tokenizer
    has_begin = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    options: dict[str, Any] = {
        "text": texts,
        "images": [list(row) for row in images] if any(images) else None,
        "add_special_tokens": not has_begin,
        "padding": len(texts) > 1,
        "padding_side": "right",
        "return_offsets_mapping": True,
        "return_text_replacement_offsets": True,
    }
    try:
        return dict(processor(**options, return_tensors="pt"))
    except ValueError as error:
        if "text_replacement_offsets" not in str(error):
            raise
        # Idefics3 tries to make a tensor of them where the first row has no image
        plain = dict(processor(**options))
        replaced = plain.pop("text_replacement_offsets")
        return {**BatchFeature(plain, tensor_type="pt"), "text_replacement_offsets": replaced}
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(processor).__name__} cannot process this batch: {error}") from error


def _moved(char: int, replaced: Sequence[Mapping[str, Any]]) -> int:
    """The place of a character once every image mark before it is written out."""
    return char + sum(
        (r["new_span"][1] - r["new_span"][0]) - (r["span"][1] - r["span"][0]) for r in replaced if r["span"][1] <= char
    )


def _overlap(offsets: Tensor, start: int, end: int) -> Tensor:
    """(T,) bool, which tokens have a character in `start:end`; padding and begin tokens, at (0, 0), never have."""
    return (offsets[:, 0] < end) & (offsets[:, 1] > start)


def _stop_of_tokenizer(batch: Mapping[str, Tensor], row: int, inside: Tensor, stops: Tensor) -> Tensor:
    """A stop token that the tokenizer itself puts right after the last answer."""
    last = int(batch["attention_mask"][row].nonzero()[-1])
    follows = last > 0 and bool(inside[last - 1]) and bool(torch.isin(batch["input_ids"][row, last], stops))
    stop_mask = torch.zeros_like(inside)
    stop_mask[last] = follows
    return stop_mask


def _check_images(one: Rendered, replaced: Sequence[Any], images: int, processor: ProcessorMixin) -> None:
    mark = getattr(processor, "image_token", None)
    written = len(replaced) if replaced else (one.text.count(mark) if mark else images)
    if written != images:
        raise ValueError(f"the chat template writes {written} image(s), the conversation has {images}")


def _check_length(one: Rendered, replaced: Sequence[Any], offsets: Tensor) -> None:
    """The offsets are those of the text that was given, not of one that the processor changed on its own."""
    longest, last = _moved(len(one.text), replaced), int(offsets[:, 1].max())
    if not _moved(len(one.text.rstrip()), replaced) <= last <= longest:
        raise ValueError(
            f"the processor changes the text of the chat template ({last} characters tokenised of {longest}), so no "
            "answer has a known place"
        )


def token_wise(batch: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with one entry a token, (B, T, ...)."""
    shape = batch["input_ids"].shape
    return [
        name
        for name, value in batch.items()
        if torch.is_tensor(value) and value.shape[:2] == shape and not value.is_floating_point()
    ]


def _cut_row(batch: dict[str, Tensor], row: int, of_image: Tensor, processor: ProcessorMixin, max_length: int) -> None:
    """Make padding of what a row has beyond `max_length`; refuse where that would be an image."""
    needed = int(of_image.nonzero()[-1]) + 1 if of_image.any() else 0
    if needed > max_length:
        raise ValueError(
            f"the images and the text in front of them take {needed} tokens, more than {max_length}, and an image is "
            "never cut; raise --model_max_length or leave images out"
        )
    fill = {"input_ids": processor.tokenizer.pad_token_id or 0, "labels": IGNORE_INDEX}
    for name in token_wise(batch):
        batch[name][row, max_length:] = fill.get(name, 0)


def _image_columns(ids: Tensor, offsets: Tensor, replaced: Sequence[Any], processor: ProcessorMixin) -> Tensor:
    columns = ids == getattr(processor, "image_token_id", -1)
    for one in replaced:
        columns = columns | _overlap(offsets, *one["new_span"])
    return columns


def _say_added(processor: ProcessorMixin, token: str) -> None:
    if token not in notes(processor).setdefault("added", set()):
        notes(processor)["added"].add(token)
        log.warning("the chat template ends no last answer; the stop token %r is put after it", token)
