"""Messages -> the text of a model's own chat template, with the place of every answer; nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from hf_medvlm.data.conversations import IMAGE
from hf_medvlm.errors import clipped
from hf_medvlm.families.chat.processors import stop_ids, with_frozen_date
from hf_medvlm.families.chat.turns import Message, text_of

Span = tuple[int, int]


def notes(processor: ProcessorMixin) -> dict[str, Any]:
    """What was found out about a processor once; it is not saved."""
    return vars(processor).setdefault("_notes", {})


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it.

    Args:
        text: the whole, images still one mark each.
        answers: the characters to supervise, one span an answer that is not empty, end-of-turn mark included.
        asked: where the last answer begins: the prompt is `text[:asked]`.
        added: the stop token that was put at the end because the template writes none there, or "".
    """

    text: str
    answers: tuple[Span, ...]
    asked: int
    added: str = ""


def render(messages: Sequence[Message], processor: ProcessorMixin) -> Rendered:
    """The template's text of checked messages, with the place of every answer.

    Raises:
        ValueError: a template that cannot be followed; the message names the turn and what the template does.
    """
    _refuse_control_tokens(messages, processor)
    return _render(messages if _takes_blocks(processor) else _as_plain_text(messages, processor), processor)


def _takes_blocks(processor: ProcessorMixin) -> bool:
    """Whether the template writes the text of content blocks; those of text models take a plain text instead."""
    template = chat_template_of(processor)
    known = notes(processor).get("takes_blocks")
    if known is None or known[0] != template:
        probe = [{"role": r, "content": [{"type": "text", "text": f"{r} probe"}]} for r in ("user", "assistant")]
        try:
            text = _write(probe, processor)
            known = (template, "user probe" in text and "assistant probe" in text and "'type'" not in text)
        except ValueError:
            known = (template, False)
        if not known[1] and not _writes_plain_text(processor):
            known = (template, True)  # neither form is written: what is lost is then said of the blocks
        notes(processor)["takes_blocks"] = known
    return known[1]


def _writes_plain_text(processor: ProcessorMixin) -> bool:
    try:
        text = _write([{"role": r, "content": f"{r} probe"} for r in ("user", "assistant")], processor)
    except ValueError:
        return False
    return "user probe" in text and "assistant probe" in text


def chat_template_of(processor: ProcessorMixin) -> str:
    """The template that a conversation is rendered with.

    Raises:
        ValueError: there is none.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError(f"{type(processor).__name__} has no chat template; choose a chat or instruct model")
    return template


def _as_plain_text(messages: Sequence[Message], processor: ProcessorMixin) -> list[Message]:
    mark = getattr(processor, "image_token", None) or IMAGE
    return [
        message
        | {
            "content": "".join(
                block["text"] if block["type"] == "text" else f"{mark}\n" for block in message["content"]
            )
        }
        for message in messages
    ]


def _write(messages: Sequence[Message], processor: ProcessorMixin, ask: bool = False) -> str:
    template = with_frozen_date(chat_template_of(processor), processor)
    try:
        return processor.apply_chat_template(list(messages), template, add_generation_prompt=ask)
    except Exception as error:  # jinja's own errors, and whatever an expression in a template raises
        raise ValueError(f"the chat template refuses this conversation: {clipped(str(error))}") from error


def _render(messages: Sequence[Message], processor: ProcessorMixin) -> Rendered:
    text = _write(messages, processor)
    answers: list[Span] = []
    asked_length, before = 0, 0
    unread = 0  # the first message whose text was not looked for yet
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, done = _write(messages[:place], processor, ask=True), _write(messages[: place + 1], processor).rstrip()
        if not text.startswith(done):
            raise ValueError(
                f"the chat template writes earlier turns anew, so the answer of turn {place} has no fixed place"
            )
        if not done.startswith(asked):
            _refuse_prompt(messages, place, asked, done, processor)
        _check_question(text[before : len(asked)], messages[unread:place], unread, processor)
        answer = message["content"] if isinstance(message["content"], str) else text_of(message)
        if answer.strip() not in done[len(asked) :]:
            raise ValueError(
                f"the chat template drops or changes the answer of turn {place}: {answer.strip()!r:.80} is not in "
                f"{done[len(asked) :]!r:.80}"
            )
        asked_length, before, unread = len(asked), len(done), place + 1
        if answer.strip():
            answers.append((len(asked), len(done)))
    return _with_stops(text, answers, asked_length, processor)


def _refuse_prompt(messages: Sequence[Message], place: int, asked: str, done: str, processor: ProcessorMixin) -> None:
    shared = next((i for i, (a, b) in enumerate(zip(asked, done, strict=False)) if a != b), min(len(asked), len(done)))
    if done.startswith(_write(messages[:place], processor).rstrip()):
        what = "the prompt that it writes for generation is not how training continues"
    else:
        what = "it writes the turns before an answer differently once the answer is there"
    raise ValueError(
        f"the chat template cannot be trained on turn {place}: {what}; generation reads "
        f"{asked[max(shared - 20, 0) : shared + 40]!r}, training {done[max(shared - 20, 0) : shared + 40]!r}"
    )


def _check_question(written: str, messages: Sequence[Message], first: int, processor: ProcessorMixin) -> None:
    """Every text and image of the messages before an answer is in what the template wrote for them."""
    mark = getattr(processor, "image_token", None)
    wanted_images = 0
    for place, message in enumerate(messages, first):
        content = message["content"]
        texts = [content] if isinstance(content, str) else [b["text"] for b in content if b["type"] == "text"]
        for text in texts:
            if text.strip() not in written:
                raise ValueError(
                    f"the chat template drops or changes the {message['role']}'s text of turn {place}: "
                    f"{text.strip()!r:.80} is not in {written!r:.120}"
                )
        wanted_images += content.count(mark) if isinstance(content, str) and mark else 0
        wanted_images += sum(block["type"] == "image" for block in content if not isinstance(block, str))
    if mark and written.count(mark) != wanted_images:
        raise ValueError(
            f"the chat template writes {written.count(mark)} image(s) before the answer of turn {first + len(messages)}"
            f", the conversation has {wanted_images} there"
        )


def _with_stops(text: str, answers: list[Span], asked: int, processor: ProcessorMixin) -> Rendered:
    """Take the stop token that follows an answer into its span; the last answer gets one if the template has none."""
    tokens = stop_tokens(processor)
    spans = []
    for start, end in answers:
        rest = text[end:].lstrip()
        follower = next((token for token in tokens if rest.startswith(token)), "")
        spans.append((start, len(text) - len(rest) + len(follower) if follower else end))
    added = ""
    if spans and not ends_turn(text[: spans[-1][1]], processor):
        end = processor.tokenizer.eos_token
        added = end if end in tokens else next(iter(tokens), "")
        if not added:
            raise ValueError("the last answer ends in no stop token, and neither model nor tokenizer has one to add")
        text += added
        spans[-1] = (spans[-1][0], len(text))
    return Rendered(text, tuple(spans), asked, added)


def stop_tokens(processor: ProcessorMixin) -> list[str]:
    """The texts of the stop ids."""
    return [token for token in processor.tokenizer.convert_ids_to_tokens(list(stop_ids(processor))) if token]


def ends_turn(text: str, processor: ProcessorMixin) -> bool:
    """Whether a text ends in a stop token, or in another control token, which then is the template's end of turn."""
    return text.rstrip().endswith(tuple({*stop_tokens(processor), *control_tokens(processor)}))


def end_of_turn(processor: ProcessorMixin) -> int | None:
    """The id of the control token that the template itself ends an answer with, None where it writes none."""
    probe = [{"role": r, "content": [{"type": "text", "text": f"{r} probe"}]} for r in ("user", "assistant")]
    text = render(probe, processor)
    if text.added:
        return None
    written = text.text[: text.answers[-1][1]].rstrip()
    last = max((token for token in control_tokens(processor) if written.endswith(token)), key=len, default=None)
    return None if last is None else processor.tokenizer.convert_tokens_to_ids(last)


def control_tokens(processor: ProcessorMixin) -> tuple[str, ...]:
    """The tokenizer's special tokens, which no text of a user or report may hold."""
    cached = notes(processor).get("control_tokens")
    if cached is None or cached[0] != len(processor.tokenizer):
        special = {str(t) for t in processor.tokenizer.added_tokens_decoder.values() if t.special}
        cached = (len(processor.tokenizer), tuple(sorted(special | set(processor.tokenizer.all_special_tokens))))
        notes(processor)["control_tokens"] = cached
    return cached[1]


def _refuse_control_tokens(messages: Sequence[Message], processor: ProcessorMixin) -> None:
    tokens = control_tokens(processor)
    for place, message in enumerate(messages):
        text = text_of(message)
        for token in tokens:
            if token in text:
                raise ValueError(
                    f"turn {place}: the text holds {token!r:.100}, a control token of this model; take it out "
                    f"of the text"
                )
