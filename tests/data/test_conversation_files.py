"""ShareGPT messages, VQA-RAD's own file and SLAKE's own files become studies with conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_medvlm.data.conversations import turns_of
from hf_medvlm.data.sources.conversation_files import read_conversation_file

RAD = {
    "qid": 7,
    "phrase_type": "test_freeform",
    "image_case_url": "https://medpix.example/case?id=1",
    "image_name": "synpic1.jpg",
    "question": "Is there a mass?",
    "answer": "No",
    "answer_type": "CLOSED ",
}
SLAKE = {
    "img_id": 3,
    "img_name": "xmlab3/source.jpg",
    "question": "What modality is this?",
    "answer": "X-Ray",
    "q_lang": "en",
    "answer_type": "OPEN",
    "qid": 11,
}


def write(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_vqa_rads_own_file(tmp_path: Path) -> None:
    (study,) = read_conversation_file(write(tmp_path / "rad.json", [RAD]))
    assert (study.answer_type, study.patient_id, study.images[0].path) == (
        "CLOSED",
        RAD["image_case_url"],
        "synpic1.jpg",
    )
    assert turns_of(study)[0]["value"] == "<image>\nIs there a mass?" and turns_of(study)[1]["value"] == "No"


def test_slakes_own_folder_keeps_its_splits_and_its_english_questions(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [SLAKE, SLAKE | {"q_lang": "zh", "qid": 12}])
    write(tmp_path / "validate.json", [SLAKE | {"img_id": 4, "img_name": "xmlab4/source.jpg"}])
    studies = read_conversation_file(tmp_path)
    assert [(study.split, study.patient_id, study.answer_type) for study in studies] == [
        ("train", "3", "OPEN"),
        ("validate", "4", "OPEN"),
    ]


def test_messages_with_marks_blocks_and_a_system_text(tmp_path: Path) -> None:
    marked = {
        "id": "a",
        "images": ["1.png", "2.png"],
        "messages": [
            {"role": "system", "content": "You are a radiologist."},
            {"role": "user", "content": "<image>\n<image>\nWhat changed?"},
            {"role": "assistant", "content": "Nothing."},
        ],
    }
    blocks = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "3.png"}, {"type": "text", "text": "Clear?"}]},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    text_only = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    first, second, third = read_conversation_file(write(tmp_path / "m.json", [marked, blocks, text_only]))
    assert [turn["from"] for turn in turns_of(first)] == ["system", "human", "gpt"]
    assert [image.path for image in first.images] == ["1.png", "2.png"]
    assert turns_of(second)[0]["value"] == "<image>\nClear?" and second.images[0].path == "3.png"
    assert not third.images


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (RAD | {"answer_type": "MAYBE"}, "record 0"),
        (SLAKE | {"answer": ""}, "record 0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 0"),
        ({"messages": [{"role": "user", "content": "<image>\nHi"}], "images": ["a.png", "b.png"]}, "1 image"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "last word"),
    ],
)
def test_a_record_that_is_not_whole_is_refused_with_its_place(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_conversation_file(write(tmp_path / "x.json", [record]))
