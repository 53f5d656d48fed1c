"""Prompts, ids and labels: against LLaVA's own (golden) and re-tokenising every round; with other tokenizers."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_medvlm.families.chat.templates import (
    END_TOKEN,
    IMAGE,
    SYSTEM,
    build_prompt,
    encode_conversation,
    encode_conversations,
    encode_questions,
)
from hf_medvlm.families.chat.tiny import train_chat_tokenizer
from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX

GOLDEN = Path(__file__).parents[2] / "golden" / "llava_preprocess"
TEXTS = [
    SYSTEM,
    "USER: Describe the findings in this chest X-ray. ASSISTANT: The heart size is normal and the lungs are clear.",
    "There is a small left pleural effusion. No pneumothorax.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' if loop.first else '' }}[{{ m.role }}] {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]


def bpe_bytes() -> PreTrainedTokenizerFast:
    """GPT-2's kind: no begin token, spaces at the front of words, offsets that leave them out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["</s>"], initial_alphabet=alphabet, vocab_size=500, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def across_words() -> PreTrainedTokenizerFast:
    """SentencePiece without splitting at spaces: pieces such as `: The`, which straddle question and answer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    letters = list(string.printable)
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters, vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TOKENIZERS = {"llama": lambda: train_chat_tokenizer(TEXTS, 500), "bytes": bpe_bytes, "across_words": across_words}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def vicuna_like() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(GOLDEN / "hf_vicuna_like")


def golden_cases() -> list[tuple[str, dict]]:
    recorded = json.loads((GOLDEN / "golden.json").read_text())
    names = {"vicuna_v1/vicuna_like/legacy_false": "v1", "plain/vicuna_like/legacy_false": "plain"}
    return [(names[key], case) for key in names for case in recorded[key]]


@pytest.mark.parametrize(("template", "case"), golden_cases(), ids=lambda v: v if isinstance(v, str) else v["name"])
def test_ids_and_labels_are_llavas(template, case, vicuna_like):
    encoded = encode_conversation(case["conversations"], vicuna_like, template)
    assert encoded["input_ids"] == case["input_ids"]
    assert encoded["labels"] == case["labels"]


def supervised(encoded: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The supervised runs of a sample, decoded."""
    runs, run = [], []
    for label in [*encoded["labels"], IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            run.append(label)
        elif run:
            runs.append(tokenizer.decode(run).strip())
            run = []
    return runs


def test_exactly_the_answers_are_supervised_with_every_tokenizer(tokenizer):
    turns = talk(f"{IMAGE}\nDescribe the findings.", "The lungs are clear.", "Is it severe?", "No pneumothorax.")
    for template in ("v1", "mistral_instruct"):
        encoded = encode_conversation(turns, tokenizer, template)
        assert supervised(encoded, tokenizer) == [
            "The lungs are clear." + gap(template),
            "No pneumothorax." + gap(template),
        ]
        assert encoded["input_ids"].count(IMAGE_TOKEN_INDEX) == 1
        assert all(label in (IGNORE_INDEX, token) for token, label in zip(*encoded.values(), strict=True))


def gap(template: str) -> str:
    return END_TOKEN if template == "v1" else f" {END_TOKEN}"


def test_answers_that_llava_loses_are_supervised(vicuna_like):
    """LLaVA drops each of these with "tokenization mismatch"."""
    for answer in ("See the USER: ASSISTANT: marks.", "It said ASSISTANT: yes.", " ASSISTANT: "):
        encoded = encode_conversation(talk("What?", answer, "And?", "Yes."), vicuna_like)
        texts = supervised(encoded, vicuna_like)
        assert texts == [answer.strip() + (" " if answer.endswith(" ") else "") + END_TOKEN, "Yes." + END_TOKEN]


def per_round(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int], bool]:
    """LLaVA's `preprocess_v1` (tokenizers >= 0.14, legacy false): every round tokenised anew. Last: count lost?"""

    def tokenize(text: str) -> list[int]:
        pieces = [tokenizer(("▁" if p.startswith(" ") else "") + p).input_ids for p in text.split(IMAGE)]
        ids = list(pieces[0])
        for piece in pieces[1:]:
            ids += [IMAGE_TOKEN_INDEX, *piece[1:]]
        return ids

    text = SYSTEM + " "
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        text += f"USER: {question['value']} ASSISTANT: {answer['value']}{END_TOKEN}"
    ids = tokenize(text)
    labels, place = list(ids), 1
    labels[:place] = [IGNORE_INDEX] * place
    for number, part in enumerate(text.split(END_TOKEN)):
        if not part:
            break
        pieces = part.split(" ASSISTANT: ")
        if len(pieces) != 2:
            break
        length = len(tokenize(part))
        asked = len(tokenize(pieces[0] + " ASSISTANT: ")) - 2
        if number:
            length, asked = length - 1, asked - 1
        labels[place : place + asked] = [IGNORE_INDEX] * asked
        place += length
    labels[place:] = [IGNORE_INDEX] * (len(labels) - place)
    return ids, labels, place != len(ids)


def test_offsets_agree_with_retokenising_every_round(vicuna_like):
    draw = random.Random(0)
    words = "the heart lungs clear normal effusion small left right no is 12 mm — é , . : \n".split(" ")
    kept = 0
    for _ in range(60):
        values = [
            " ".join(draw.choices(words, k=draw.randint(1, 12))).strip() or "x" for _ in range(2 * draw.randint(1, 4))
        ]
        if draw.random() < 0.5:
            values[0] = f"{IMAGE}\n{values[0]}".strip()
        ids, labels, lost = per_round(talk(*values), vicuna_like)
        encoded = encode_conversation(talk(*values), vicuna_like)
        assert encoded["input_ids"] == ids
        kept += not lost
        if not lost:
            assert encoded["labels"] == labels
    assert kept > 30


def test_a_batch_is_encoded_as_its_conversations_one_by_one(tokenizer):
    batch = [talk(f"{IMAGE}\nWhat?", "Clear."), talk("Hi", "Yes."), talk(f"{IMAGE}\nA?", "No.", "B?", "Yes, small.")]
    together = encode_conversations(batch, tokenizer)
    assert together == [encode_conversation(turns, tokenizer) for turns in batch]


def test_the_tokenizers_own_chat_template(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    encoded = encode_conversation(
        talk(f"{IMAGE}\nWhat?", "The lungs are clear.", "So?", "Yes."), tokenizer, "tokenizer"
    )
    assert supervised(encoded, tokenizer) == [f"The lungs are clear.{END_TOKEN}", f"Yes.{END_TOKEN}"]
    assert encoded["input_ids"].count(IMAGE_TOKEN_INDEX) == 1


def test_mistral_instruct_is_llava_meds_text(tokenizer):
    text = build_prompt(talk(f"{IMAGE}\nq1", "a1", "q2", "a2"), "mistral_instruct", tokenizer).text
    assert text == f"[INST] {IMAGE}\nq1 [/INST] a1 </s>[INST] q2 [/INST] a2 </s>"


def test_questions_are_the_conversation_up_to_its_last_answer(tokenizer):
    turns = talk(f"{IMAGE}\nWhat?", "Clear.", "So?", "A secret.")
    asked = encode_questions(turns, tokenizer)
    assert asked == encode_questions([*turns[:-1], {"from": "gpt", "value": "Something else."}], tokenizer)
    text = tokenizer.decode([token for token in asked if token >= 0])
    assert text.endswith("ASSISTANT:") and "Clear." in text and "secret" not in text


def test_text_is_cut_and_images_never(tokenizer):
    turns = talk(f"{IMAGE}\nDescribe the findings.", "The lungs are clear. " * 20)
    whole = encode_conversation(turns, tokenizer)
    image = whole["input_ids"].index(IMAGE_TOKEN_INDEX)
    cut = encode_conversation(turns, tokenizer, max_length=image + 40, image_tokens=16)
    assert cut["input_ids"] == whole["input_ids"][: image + 40 - 15] and len(cut["labels"]) == image + 25
    with pytest.raises(ValueError, match="never cut"):
        encode_conversation(turns, tokenizer, max_length=image + 15, image_tokens=16)


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        (talk("a", "b", "c"), {}, "roles out of order"),
        (talk("a"), {}, "roles out of order"),
        ([{"from": "human", "value": "a"}] * 2, {}, "roles out of order"),
        ([{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}], {}, "roles out of order"),
        ([{"from": "doctor", "value": "a"}], {}, "doctor"),
        (talk(f"{IMAGE}\n{IMAGE}\na", "b"), {"images": 1}, r"2 time\(s\), but the sample has 1"),
        (talk("a", "b"), {"images": 1}, r"0 time\(s\), but the sample has 1"),
        (talk("a", "b"), {"template": "v2"}, "v1, vicuna_v1, plain"),
        (talk("a", "b"), {"template": "plain"}, "one turn with <image>"),
        (talk("a", "b"), {"template": "tokenizer"}, "no chat template of its own"),
    ],
)
def test_what_cannot_be_encoded_is_refused(turns, options, message):
    with pytest.raises(ValueError, match=message):
        encode_conversation(turns, train_chat_tokenizer(TEXTS), **options)


def test_a_tokenizer_without_a_chat_vocabulary_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "heart": 1}, unk_token="[UNK]"))
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    with pytest.raises(ValueError, match="no chat vocabulary .* </s> is not in it"):
        encode_conversation(talk("a", "b"), plain)


def test_a_chat_template_that_rewrites_the_past_is_refused():
    tokenizer = train_chat_tokenizer(TEXTS)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="writes earlier turns anew"):
        encode_conversation(talk("a", "b", "c", "d"), tokenizer, "tokenizer")
