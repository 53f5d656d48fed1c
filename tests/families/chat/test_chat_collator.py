"""The chat collator: image tokens counted and never cut, every sample checked, packing, lazy pixels, previews."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_medvlm.data.conversations import IMAGE, ChatOptions, from_llava
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.chat.collator import ChatCollator
from hf_medvlm.families.chat.tiny import make_processor, train_chat_tokenizer
from hf_medvlm.labels import IGNORE_INDEX


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for number in range(3):
        Image.fromarray(np.full((20, 30), 60 * number, np.uint8)).save(path / f"{number}.png")
    return path


@pytest.fixture
def collator(folder) -> ChatCollator:
    tokenizer = train_chat_tokenizer(["Describe the findings. The lungs are clear. No effusion."])
    return ChatCollator(make_processor(tokenizer, 16, 8), folder)


def chat(name: str, paths: list[str], *values: str) -> Study:
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return from_llava({"id": name, "image": paths, "conversations": turns})


@pytest.fixture
def studies() -> list[Study]:
    return [
        chat("one", ["0.png"], f"{IMAGE}\nDescribe.", "The lungs are clear."),
        chat("text", [], "What is edema?", "Fluid."),
        chat("two", ["1.png", "2.png"], f"{IMAGE}\n{IMAGE}\nCompare.", "No effusion.", "Sure?", "Yes."),
    ]


def supervised(collator, study) -> str:
    """What the loss sees of a study, as text."""
    return collator.tokenizer.decode([label for label in collator.encode(study)["labels"] if label != IGNORE_INDEX])


def test_images_are_expanded_in_order_and_rows_padded(collator, studies):
    batch = collator(studies)
    image = batch["input_ids"] == collator.processor.image_token_id
    assert image.sum(1).tolist() == [4, 0, 8] and collator.image_tokens == 4
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    middle = batch["pixel_values"][:, 0, 8, 8]
    assert middle[0] < middle[1] < middle[2]
    assert (batch["labels"][image] == IGNORE_INDEX).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    assert batch["attention_mask"].sum(1).tolist() == [len(collator.encode(study)["input_ids"]) for study in studies]


def test_a_batch_of_texts_has_no_pixels(collator, studies):
    assert set(collator(studies[1:2])) == {"input_ids", "attention_mask", "labels"}


def test_packing_leaves_no_padding_and_no_shared_positions(collator, studies):
    padded = collator(studies)
    collator.packing = True
    batch = collator(studies)
    lengths = [len(collator.encode(study)["input_ids"]) for study in studies]
    assert batch["input_ids"].shape == (1, sum(lengths)) and "attention_mask" not in batch
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.tensor(lengths).cumsum(0)[:-1]])
    assert torch.equal((batch["position_ids"][0] == 0).nonzero().flatten(), starts)
    assert (batch["labels"] != IGNORE_INDEX).sum() == (padded["labels"] != IGNORE_INDEX).sum()


def test_prompts_end_where_the_last_answer_begins(collator, studies):
    batch = collator.prompts(studies)
    assert (batch["attention_mask"][:, -1] == 1).all() and "labels" not in batch
    decode = collator.tokenizer.decode
    texts = [decode(row[mask.bool()]) for row, mask in zip(*list(batch.values())[:2], strict=True)]
    assert all(text.endswith("ASSISTANT:") for text in texts)
    assert "No effusion." in texts[2] and "Yes." not in texts[2]
    assert [collator.target(study) for study in studies] == ["The lungs are clear.", "Fluid.", "Yes."]


def test_the_answers_are_supervised_and_nothing_else(collator, studies):
    assert supervised(collator, studies[2]) == "No effusion.</s> Yes.</s>"


def test_the_text_is_cut_and_the_image_is_not(collator):
    long = chat("long", ["0.png"], f"{IMAGE}\nDescribe.", "The lungs are clear. " * 50)
    whole = collator.encode(long)
    first = next(place for place, label in enumerate(whole["labels"]) if label != IGNORE_INDEX)
    collator.max_length = first + 5
    cut = collator.encode(long)
    assert cut["input_ids"] == whole["input_ids"][: first + 5]
    assert cut["input_ids"].count(collator.processor.image_token_id) == 4
    collator.max_length = first
    with pytest.raises(ValueError, match=r"study 'long': nothing is supervised.* --model_max_length"):
        collator([long])
    with pytest.raises(ValueError, match="study 'long': its prompt has"):
        collator.max_length = 20
        collator.prompts([long])
    with pytest.raises(ValueError, match="study 'long': .* an image is never cut"):
        collator([long])


def test_a_plain_study_is_turned_into_a_conversation(collator):
    study = Study("s", "p", images=(StudyImage("0.png"), StudyImage("1.png", "LATERAL")), report="No effusion.")
    collator.options = ChatOptions(views="all")
    assert collator([study])["pixel_values"].shape[0] == 2
    assert supervised(collator, study) == "No effusion.</s>"


def test_a_missing_image_and_an_unknown_template_are_named(collator, folder):
    with pytest.raises(ValueError, match="absent.png: there is no such file"):
        collator([chat("a", ["absent.png"], f"{IMAGE}\nx", "y")])
    with pytest.raises(ValueError, match="v1, vicuna_v1, plain"):
        ChatCollator(collator.processor, folder, template="v7")
