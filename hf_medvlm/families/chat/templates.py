"""A conversation -> the prompt of a chat template -> token ids, with labels on the assistant's answers alone.

The mask is found by character offsets: the prompt is put together piece by piece, so the place of every answer in the
text is known, and a token is supervised where it lies in an answer. Nothing is tokenised twice, and no token count of
one vocabulary is assumed. Knows no pixels and no tensors.

Prompts and token ids are those of haotian-liu/LLaVA @ c121f043 (`preprocess_v1`, `preprocess_plain`,
`tokenizer_image_token`), `mistral_instruct` that of microsoft/LLaVA-Med @ d406e3fc. Where LLaVA's masking loses count
and drops the sample ("tokenization mismatch"), the answer is supervised here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, Turn, check_roles, place_images
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX

TEMPLATES = ("v1", "vicuna_v1", "plain", "mistral_instruct", "tokenizer")
END_TOKEN = "</s>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """The text of a conversation; `answers` are the character spans to supervise, end-of-turn mark included."""

    text: str
    answers: tuple[Span, ...]


def build_prompt(conversations: Sequence[Turn], template: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The text of checked turns in a template, with the place of every answer.

    Raises:
        ValueError: an unknown template, or one that this tokenizer cannot follow.
    """
    if template in ("v1", "vicuna_v1"):
        return _alternate(conversations, SYSTEM + " ", "USER: ", " ASSISTANT:")
    if template == "mistral_instruct":
        return _alternate(conversations, "", "[INST] ", " [/INST]", end=f" {END_TOKEN}")
    if template == "plain":
        if len(conversations) != 2 or IMAGE not in conversations[0]["value"]:
            raise ValueError(
                f"template plain takes one turn with {IMAGE} and one answer, found {len(conversations)} turns"
            )
        images = IMAGE * conversations[0]["value"].count(IMAGE)
        text = images + conversations[1]["value"] + "\n"
        return Prompt(text, ((len(images), len(text)),))
    if template == "tokenizer":
        return _own_template(conversations, tokenizer)
    raise ValueError(f"there is no chat template {template!r:.100}; --version is one of {', '.join(TEMPLATES)}")


def _alternate(turns: Sequence[Turn], text: str, ask: str, answer: str, end: str = END_TOKEN) -> Prompt:
    spans = []
    for question, reply in zip(turns[::2], turns[1::2], strict=True):
        text += ask + question["value"] + answer
        if reply["value"]:
            start = len(text)
            text += " " + reply["value"] + end
            spans.append((start, len(text)))
    return Prompt(text, tuple(spans))


def _own_template(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """What `apply_chat_template` adds for an answer to the text that asks for it, but for white space at the end."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"{_name(tokenizer)} has no chat template of its own; choose --version v1, plain or mistral_instruct"
        )
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    spans = []
    for place in range(1, len(messages), 2):
        asked = str(tokenizer.apply_chat_template(messages[:place], tokenize=False, add_generation_prompt=True))
        answered = str(tokenizer.apply_chat_template(messages[: place + 1], tokenize=False)).rstrip()
        if not answered.startswith(asked) or not text.startswith(answered):
            raise ValueError(
                f"the chat template of {_name(tokenizer)} writes earlier turns anew, so the answer of turn {place} "
                "has no fixed place in the text; choose --version v1, plain or mistral_instruct"
            )
        for number, part in ((place - 1, asked), (place, answered[len(asked) :])):
            if messages[number]["content"].strip() not in part:
                raise ValueError(
                    f"the chat template of {_name(tokenizer)} drops or changes the text of turn {number}; train this "
                    "model with recipes/finetune_chat.py, which hands its template what it takes"
                )
        if messages[place]["content"]:
            spans.append((len(asked), len(answered)))
    return Prompt(text, tuple(spans))


def encode_conversation(
    conversations: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    template: str = "v1",
    max_length: int | None = None,
    *,
    images: int | None = None,
    image_tokens: int = 1,
) -> dict[str, list[int]]:
    """Token ids and labels of one conversation, each image still one `IMAGE_TOKEN_INDEX`.

    Args:
        conversations: `[{"from": "human" | "gpt", "value": text}, ...]`.
        tokenizer: any fast tokenizer (the mask needs its offsets).
        max_length: tokens at most, each image counted as `image_tokens`; the text is cut at the end, an image never.
        images: how many images the sample has; None: one for each turn that names any, as in LLaVA.

    Returns:
        `input_ids` and `labels`, equally long; `IGNORE_INDEX` but on the answers and their end tokens.

    Raises:
        ValueError: roles out of order, an image count that differs, a tokenizer without a chat vocabulary, or an image
            that `max_length` would cut.
    """
    return encode_conversations(
        [conversations], tokenizer, template, max_length, images=[images], image_tokens=image_tokens
    )[0]


def encode_conversations(
    batch: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    template: str = "v1",
    max_length: int | None = None,
    *,
    images: Sequence[int | None] | None = None,
    image_tokens: int = 1,
) -> list[dict[str, list[int]]]:
    """`encode_conversation` of many at once, in a single call of the tokenizer."""
    check_chat_vocabulary(tokenizer, template)
    counts = images or [None] * len(batch)
    prompts = [
        build_prompt(check_roles(place_images(turns, count)), template, tokenizer)
        for turns, count in zip(batch, counts, strict=True)
    ]
    return encode_prompts(prompts, tokenizer, template, max_length, image_tokens)


def encode_questions(
    conversations: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, template: str = "v1", images: int | None = None
) -> list[int]:
    """The ids of a conversation up to where its last answer would begin: the prompt for `generate`.

    The last answer's text is never looked at, so that none of it can reach the prompt.
    """
    check_chat_vocabulary(tokenizer, template)
    blank = "."  # stands for the answer, and is cut off again
    turns = [*check_roles(place_images(conversations, images))[:-1], {"from": ASSISTANT, "value": blank}]
    prompt = build_prompt(turns, template, tokenizer)
    asked = Prompt(prompt.text[: prompt.answers[-1][0]], ())
    return encode_prompts([asked], tokenizer, template)[0]["input_ids"]


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int | None = None,
    image_tokens: int = 1,
) -> list[dict[str, list[int]]]:
    """Tokenise the text between the images piece by piece, as LLaVA does, and label by offsets."""
    pieces = [prompt.text.split(IMAGE) for prompt in prompts]
    begin, spare = _habits(tokenizer, tokenizer.bos_token_id)
    begin = [] if template == "tokenizer" else begin
    unique = list(dict.fromkeys(piece for parts in pieces for piece in parts))  # all begin with the same system text
    pads = [spare * piece.startswith(" ") for piece in unique]
    tokens = tokenizer(
        [" " * pad + piece for piece, pad in zip(unique, pads, strict=True)],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows = zip(tokens["input_ids"], tokens["offset_mapping"], pads, strict=True)
    tokenised = dict(zip(unique, rows, strict=True))
    encoded = []
    for prompt, parts in zip(prompts, pieces, strict=True):
        ids, labels, start = list(begin), [IGNORE_INDEX] * len(begin), 0
        for part in parts:
            piece, offsets, pad = tokenised[part]
            if start:
                ids.append(IMAGE_TOKEN_INDEX)
                labels.append(IGNORE_INDEX)
            ids += piece
            labels += _label(piece, offsets, start, pad, prompt)
            start += len(part) + len(IMAGE)
        encoded.append(_cut(ids, labels, max_length, image_tokens))
    return encoded


def _label(ids: list[int], offsets: list[Span], start: int, pad: int, prompt: Prompt) -> list[int]:
    """The ids that lie in an answer, `IGNORE_INDEX` elsewhere.

    A token that straddles the beginning of an answer counts only if it holds more of it than the space in front.

    Args:
        offsets: (begin, end) of each token in a piece that begins at `start` of the prompt, `pad` spaces put in front.
    """
    labels = [IGNORE_INDEX] * len(ids)
    for first, last in prompt.answers:
        text = first + (prompt.text[first : first + 1] == " ")
        # tokens stand in the order of their text, so each answer is one run of them
        left = bisect_left(
            offsets, True, key=lambda o: max(o[0] - pad, 0) + start >= first or o[1] - pad + start > text
        )
        right = bisect_left(offsets, True, lo=left, key=lambda o: max(o[0] - pad, 0) + start >= last)
        labels[left:right] = ids[left:right]
    return labels


def _cut(ids: list[int], labels: list[int], max_length: int | None, image_tokens: int) -> dict[str, list[int]]:
    room = len(ids) if max_length is None else max_length - (image_tokens - 1) * ids.count(IMAGE_TOKEN_INDEX)
    if IMAGE_TOKEN_INDEX in ids[max(room, 0) :]:
        raise ValueError(
            f"{ids.count(IMAGE_TOKEN_INDEX)} image(s) of {image_tokens} tokens and the text in front of them do not "
            f"fit into {max_length} tokens, and an image is never cut; raise --model_max_length or leave images out"
        )
    return {"input_ids": ids[:room], "labels": labels[:room]}


@lru_cache(maxsize=16)
def _habits(tokenizer: PreTrainedTokenizerBase, begin: int | None) -> tuple[list[int], bool]:
    """The begin token, where the tokenizer puts one, and whether it swallows the space at the beginning of a text.

    SentencePiece puts its "▁" in front of a text that begins with a space too; transformers' tokenizers do not, so that
    such a text needs a second space.
    """
    begins = [] if begin is None or tokenizer("").input_ids[:1] != [begin] else [begin]
    plain, spaced = tokenizer(["a", " a"], add_special_tokens=False).input_ids
    return begins, plain == spaced


def check_chat_vocabulary(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Refuse a tokenizer whose answers could never end, or which gives no offsets.

    Raises:
        ValueError: what is missing, and what to choose instead.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{_name(tokenizer)} is no fast tokenizer and gives no offsets; convert it to a tokenizer.json"
        )
    if template in ("v1", "vicuna_v1", "mistral_instruct") and tokenizer.convert_tokens_to_ids(END_TOKEN) in (
        None,
        tokenizer.unk_token_id,
    ):
        raise ValueError(
            f"{_name(tokenizer)} has no chat vocabulary for template {template}: the end token {END_TOKEN} is not in "
            "it; take a chat model (Vicuna, Mistral-Instruct), or --version tokenizer if it has a chat template"
        )


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
