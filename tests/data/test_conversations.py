"""Studies to LLaVA conversations and back; broken files refused with their place; no report text in a prompt."""

from __future__ import annotations

import json

import pytest

from hf_medvlm.data.conversations import (
    IMAGE,
    PROMPTS,
    ChatOptions,
    answer_of,
    from_llava,
    modality_length,
    patients_known,
    read_llava,
    to_llava,
    turns_of,
    with_conversations,
    without_repeats,
)
from hf_medvlm.data.study import Study, StudyBox, StudyImage

STUDY = Study(
    study_id="s1",
    patient_id="p1",
    split="train",
    images=(StudyImage("a/lat.dcm", "LATERAL"), StudyImage("a/pa.png", "PA")),
    findings="The lungs are clear.",
    impression="Normal chest.",
    indication="Cough. The lungs are clear. Fever?",
    boxes=(StudyBox(1, "heart", (1, 2, 3, 4)),),
    extra={"scanner": "x"},
)
PRIOR = Study("s0", "p1", "train", (StudyImage("a/old.png", "AP"),), findings="Effusion.")
SAMPLE = {
    "id": "x",
    "image": "a.png",
    "conversations": [{"from": "human", "value": f"{IMAGE}\nWhat?"}, {"from": "gpt", "value": "Clear."}],
}


def question(study: Study) -> str:
    return turns_of(study)[0]["value"]


def test_a_study_becomes_one_question_and_its_report():
    (chat,) = with_conversations([STUDY], ChatOptions(prompts=PROMPTS[:1]))
    assert question(chat) == f"{IMAGE}\nDescribe the findings in this chest X-ray and write a report."
    assert answer_of(chat) == "The lungs are clear. Normal chest."
    assert [image.path for image in chat.images] == ["a/pa.png"] and chat.boxes[0].image == 0
    assert chat.findings == STUDY.findings and chat.extra["scanner"] == "x"
    (only,) = with_conversations([STUDY], ChatOptions(sections=("impression",)))
    assert answer_of(only) == "Normal chest."
    assert with_conversations([chat], ChatOptions(sections=("impression",))) == [chat]


def test_the_patient_of_a_sample_is_given_or_named_by_the_path_or_not_known():
    paths = (
        "files/p10/p10000032/s50414267/a.jpg",
        "train/patient00001/study1/view1_frontal.jpg",
        "a.png",
        "x/p1/b.png",
    )
    studies = [from_llava(SAMPLE | {"image": path}) for path in paths]
    assert [study.patient_id for study in studies] == ["10000032", "patient00001", "a.png", "x/p1/b.png"]
    assert patients_known(studies[:2]) and not patients_known(studies)
    assert patients_known([from_llava(SAMPLE | {"patient_id": 7})])


def test_all_views_and_the_prior_in_the_order_of_their_marks():
    linked = Study(**{**vars(STUDY), "prior_study_id": "s0"})
    chat, _ = with_conversations([linked, PRIOR], ChatOptions(views="all", prior=True))
    assert [image.path for image in chat.images] == ["a/pa.png", "a/lat.dcm", "a/old.png"]
    assert question(chat).startswith(f"{IMAGE}\n" * 3) and question(chat).count(IMAGE) == 3
    assert question(chat).endswith("in this order: PA, LATERAL, previous AP.")


def test_the_prompt_never_holds_a_sentence_of_the_answer():
    (chat,) = with_conversations([STUDY], ChatOptions(indication=True))
    assert question(chat).endswith(" Indication: Cough. Fever?")
    assert "lungs are clear" not in question(chat)
    assert without_repeats("THE LUNGS, are clear!", "the lungs are clear.") == ""


def test_prompts_vary_by_study_and_repeat():
    studies = [Study(f"s{n}", "p", images=STUDY.images, report="x") for n in range(40)]
    first, second = (with_conversations(studies) for _ in range(2))
    assert first == second and len({question(study) for study in first}) == len(PROMPTS)


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_to_llava_and_back(name, tmp_path):
    chats = with_conversations([STUDY, PRIOR], ChatOptions(views="all"))
    records = [to_llava(chat) for chat in chats]
    assert records[0]["image"] == ["a/pa.png", "a/lat.dcm"] and records[1]["image"] == "a/old.png"
    if name.endswith("l"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    else:
        (tmp_path / name).write_text(json.dumps(records))
    back = read_llava(tmp_path / name)
    for chat, study in zip(chats, back, strict=True):
        assert (study.study_id, study.patient_id, study.split, study.images) == (
            chat.study_id,
            chat.patient_id,
            chat.split,
            chat.images,
        )
        assert turns_of(study) == turns_of(chat) and study.report == answer_of(chat)
    assert [to_llava(study) for study in back] == records


def test_llavas_own_files(tmp_path):
    text_only = {"id": 7, "conversations": [{"from": "gpt", "value": "Hi."}, *SAMPLE["conversations"]]}
    text_only["conversations"][1] = {"from": "human", "value": "What is edema?"}
    (tmp_path / "d.json").write_text(json.dumps([SAMPLE, SAMPLE, text_only]))
    one, again, text = read_llava(tmp_path / "d.json")
    assert (one.study_id, again.study_id, text.study_id) == ("x", "x#2", "7")
    assert one.patient_id == again.patient_id == "a.png" and text.patient_id == "7"
    assert turns_of(text)[0]["value"] == "What is edema?" and not text.images
    assert modality_length(one) == 3 and modality_length(text) == -4


def broken(**changes) -> dict:
    return SAMPLE | changes


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (broken(image="../a.png"), "'../a.png' leaves the image folder"),
        (broken(image="/etc/a.png"), "leaves the image folder"),
        (broken(image=["a.png", "b.png"]), r"names <image> 1 time\(s\), but the sample has 2"),
        (broken(image=None), r"names <image> 1 time\(s\), but the sample has 0"),
        (broken(conversations=SAMPLE["conversations"][:1]), "roles out of order"),
        (broken(conversations=SAMPLE["conversations"][::-1]), "roles out of order"),
        (broken(conversations=[SAMPLE["conversations"][0], {"from": "gpt", "value": " "}]), "every answer is empty"),
        (broken(conversations=[SAMPLE["conversations"][0], {"from": "gpt"}]), "turn 1 has no text"),
        (broken(conversations=["hello"]), "turn 0 must be"),
        (broken(conversations=None), 'a sample is {"id", "image", "conversations"}'),
        ("text", "a sample is"),
    ],
)
def test_a_sample_that_cannot_be_is_refused_with_its_place(record, message, tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([SAMPLE, record]))
    with pytest.raises(ValueError, match=message) as refused:
        read_llava(path)
    assert str(refused.value).startswith(f"{path}: sample 1")
    if isinstance(record, dict):
        assert "(id 'x')" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", '[\n {"id": 1,}\n]', r"d.json:2: not JSON at column \d+: .*, near '.*\"id\": 1,}"),
        ("d.jsonl", json.dumps(SAMPLE) + "\n{", "d.jsonl:2: not JSON at column"),
        ("d.json", "{}", "a list of samples, found a dict"),
        ("d.json", "[]", "no samples"),
    ],
)
def test_broken_files_are_refused_with_their_place(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_llava(tmp_path / name)


def test_what_cannot_become_a_conversation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'s' has no text in findings"):
        with_conversations([Study("s", "p", images=STUDY.images)], ChatOptions(sections=("findings",)))
    with pytest.raises(ValueError, match="--views 'some'"):
        ChatOptions(views="some")
    with pytest.raises(ValueError, match="--prompts"):
        ChatOptions(prompts=("a", " "))
    with pytest.raises(ValueError, match="has no conversation"):
        turns_of(STUDY)
    with pytest.raises(ValueError, match="No such file"):
        read_llava(tmp_path / "absent.json")
    assert list(from_llava(SAMPLE).conversations) == SAMPLE["conversations"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_separators_of_unicode_and_a_byte_order_mark_are_data(suffix, tmp_path):
    answer = "Clear lungs.\u2028No effusion.\u2029\u0085Normal."
    sample = SAMPLE | {"conversations": [SAMPLE["conversations"][0], {"from": "gpt", "value": answer}], "split": "val"}
    text = json.dumps([sample] if suffix == ".json" else sample, ensure_ascii=False)
    (tmp_path / f"d{suffix}").write_text(text, encoding="utf-8-sig")
    (study,) = read_llava(tmp_path / f"d{suffix}")
    assert study.report == answer and study.split == "validate"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": 5}, "image must be a path or a list of paths, found 5"),
        ({"image": {"a": 1}}, "image must be a path"),
        ({"image": ["a.png", None]}, "image must be a path"),
        ({"views": 5}, "views must be a list"),
        ({"views": [["PA"]]}, "a view is text"),
        ({"id": []}, "id must be a text or a number"),
        ({"id": None}, "a sample needs an id"),
        ({"split": ["train"]}, "split must be text"),
    ],
)
def test_fields_of_another_type_are_refused(changes, message, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([SAMPLE | changes]))
    with pytest.raises(ValueError, match=f"d.json: sample 0.*{message}"):
        read_llava(tmp_path / "d.json")
