"""Turns of a conversation in any of the usual forms -> checked messages with content blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE

ROLES = {HUMAN: "user", ASSISTANT: "assistant", "system": "system", "user": "user", "assistant": "assistant"}
STAND_IN = "."  # for an answer that is not known yet; cut off again

Message = dict[str, Any]


def as_messages(conversation: Sequence[Mapping[str, Any]], images: int | None = None) -> list[Message]:
    """The turns as messages with content blocks, checked.

    Args:
        conversation: `{"from": "human" | "gpt" | "system", "value": text}` or `{"role", "content"}`, with the content
            a text or a list of blocks. In a text every `<image>` is an image; line ends beside it are its separator.
        images: how many images there are; None leaves that unchecked.

    Raises:
        ValueError: an unknown role, roles out of order, no answer at the end, an image in an answer, or another number
            of images; the message names the turn.
    """
    messages = [_message(turn, place) for place, turn in enumerate(conversation)]
    start = 1 if messages and messages[0]["role"] == "system" else 0
    order = [message["role"] for message in messages[start:]]
    if not order or order != ["user", "assistant"] * (len(order) // 2):
        shown = ", ".join(message["role"] for message in messages) or "no turns"
        raise ValueError(
            f"roles out of order: user and assistant take turns, the assistant has the last word, and a system text "
            f"stands first; found {shown}"
        )
    marks = sum(block["type"] == "image" for message in messages for block in message["content"])
    if images is not None and marks != images:
        raise ValueError(f"the conversation names {IMAGE} {marks} time(s), but the sample has {images} image(s)")
    return messages


def _message(turn: Any, place: int) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {place} is a {type(turn).__name__}, not a role and a text")
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"turn {place} has the role {name!r:.80}; a role is one of {', '.join(ROLES)}")
    content = turn.get("content") if "role" in turn else turn.get("value")
    if isinstance(content, str):
        blocks = _blocks(content) if role == "user" or IMAGE in content else [{"type": "text", "text": content}]
    elif isinstance(content, Sequence):
        blocks = [_block(block, place) for block in content]
    else:
        raise ValueError(f"turn {place} has no text: its content is {content!r:.80}")
    if role != "user" and any(block["type"] == "image" for block in blocks):
        raise ValueError(f"turn {place}: only a user's turn holds images, not one of the {role}")
    return {"role": role, "content": blocks}


def _block(block: Any, place: int) -> Message:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind in ("image", "image_url"):
        return {"type": "image"}
    raise ValueError(
        f"turn {place}: a block is {{'type': 'text', 'text': ...}} or {{'type': 'image'}}, not {kind!r:.100}"
    )


def _blocks(text: str) -> list[Message]:
    """`<image>` marks as blocks of their own; a text without any stays as it is."""
    if IMAGE not in text:
        return [{"type": "text", "text": text}]
    pieces = [piece.strip("\r\n") for piece in text.split(IMAGE)]
    filled = [place for place, piece in enumerate(pieces) if piece.strip()]
    if filled:  # a turn that names images is stripped, as in LLaVA
        pieces[filled[0]] = pieces[filled[0]].lstrip()
        pieces[filled[-1]] = pieces[filled[-1]].rstrip()
    blocks: list[Message] = []
    for place, piece in enumerate(pieces):
        blocks += [{"type": "image"}] if place else []
        blocks += [{"type": "text", "text": piece}] if place in filled else []
    return blocks


def text_of(message: Message) -> str:
    """The text blocks of a message."""
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def with_stand_in(messages: Sequence[Message]) -> list[Message]:
    """The messages with the last answer replaced, so that none of it can reach a prompt."""
    return [*messages[:-1], {"role": "assistant", "content": [{"type": "text", "text": STAND_IN}]}]
