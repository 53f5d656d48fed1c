"""Captions: what is masked, what is cut, what a prompt batch holds."""

from __future__ import annotations

import pytest
from PIL import Image

from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.families.captioners.collator import CaptionCollator
from hf_medvlm.families.captioners.model import BlipCaptioner
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.models.tiny import train_tokenizer

TEXTS = ["heart size is normal", "no effusion"]


@pytest.fixture
def studies(tmp_path) -> list[Study]:
    Image.new("L", (50, 60), 99).save(tmp_path / "a.png")
    return [Study(str(i), str(i), images=(StudyImage("a.png"),), findings=text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def collator(tmp_path) -> CaptionCollator:
    processor = BlipCaptioner.tiny_processor(train_tokenizer([*TEXTS, "a radiograph of"]), 32)
    return CaptionCollator(processor, tmp_path, first_token=2)


def test_padding_is_masked_and_the_end_is_learnt(collator, studies):
    batch = collator(studies)
    pad, end = collator.processor.tokenizer.pad_token_id, collator.processor.tokenizer.sep_token_id
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert ids[1].tolist()[-2:] == [pad, pad] and labels[1].tolist()[-2:] == [IGNORE_INDEX] * 2
    assert ids[0, -1] == end == labels[0, -1]
    assert (labels[:, 0] == IGNORE_INDEX).all() and (ids[:, 0] == 2).all()
    assert (mask == (ids != pad)).all()
    assert ((labels == ids) | (labels == IGNORE_INDEX)).all()


def test_the_prompt_is_given_and_not_learnt(collator, studies):
    collator.prompt = "a radiograph of"
    length = len(collator.prompt_ids)
    batch, prompts = collator(studies), collator.prompts(studies)
    assert (batch["labels"][:, :length] == IGNORE_INDEX).all()
    assert prompts["input_ids"].tolist() == [collator.prompt_ids] * 2
    assert "labels" not in prompts


def test_a_long_report_is_cut_and_still_ends(collator, studies):
    collator.max_length = 4
    batch = collator(studies)
    assert batch["input_ids"].shape == (2, 4)
    assert (batch["input_ids"][:, -1] == collator.processor.tokenizer.sep_token_id).all()


def test_a_study_without_image_is_named(collator):
    with pytest.raises(ValueError, match="study 'lonely' has no image"):
        collator([Study("lonely", "p", findings="x")])
