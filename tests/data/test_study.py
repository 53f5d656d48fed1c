"""`Study`: what a master file may hold in each field, and what the text of a study is."""

import json
import os
from pathlib import Path

import pytest

from hf_medvlm.data.load import load_splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study, StudyBox, StudyImage, read_jsonl, write_jsonl

FAULTS = Path(__file__).parents[3] / "shared" / "golden" / "faults"
RECORD = {"study_id": "s1", "patient_id": "p1", "images": [{"path": "a.png", "view": "PA"}], "findings": "Clear."}
OPTIONAL = {
    "comparison": "None.",
    "conversations": [{"from": "human", "value": "<image>\nEdema?"}, {"from": "gpt", "value": "No."}],
    "triplets": [["effusion", "left_pleural", "present"]],
    "progression": {"Edema": "improving"},
    "answer_type": "CLOSED",
}


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_optional_fields_are_typed_and_unknown_keys_survive(tmp_path):
    record = RECORD | OPTIONAL | {"scanner": {"maker": "x"}, "age": 61}
    (study,) = read_jsonl(write(tmp_path / "m.jsonl", record))
    assert study.progression == {"Edema": "improving"} and study.answer_type == "CLOSED"
    assert study.triplets == (("effusion", "left_pleural", "present"),) and study.comparison == "None."
    assert study.conversations[1]["value"] == "No." and study.extra == {"scanner": {"maker": "x"}, "age": 61}
    assert StudyRows([study]).studies == [study]  # through Arrow
    write_jsonl([study], tmp_path / "again.jsonl")
    assert read_jsonl(tmp_path / "again.jsonl") == [study]
    assert record.items() <= json.loads((tmp_path / "again.jsonl").read_text()).items()


def test_a_study_without_optional_fields_writes_none_of_them():
    written = Study.from_dict(RECORD).to_dict()
    assert OPTIONAL.keys().isdisjoint(written) and "extra" not in written
    looked = Study.from_dict(RECORD | {"triplets": []})  # somebody looked, and there is none
    assert looked.triplets == () and looked.to_dict()["triplets"] == [] and Study.from_dict(RECORD).triplets is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ["a"]}, "source must be text, got \\['a'\\]"),
        ({"licence": 5}, "licence must be text"),
        ({"findings": {"a": 1}}, "findings must be text"),
        ({"comparison": 1}, "comparison must be text"),
        ({"images": [{"path": "a.png", "view": ["PA"]}]}, "a view is text"),
        ({"images": ["a.png"]}, "images are"),
        ({"images": 5}, "images are"),
        ({"boxes": [{"image": 0, "phrase": ["x"], "xywh": [1, 2, 3, 4]}]}, "a box's phrase must be text"),
        ({"boxes": [{"image": 0, "phrase": "x", "xywh": [1, 2, 3]}]}, "four finite numbers"),
        ({"boxes": [{"image": 0, "phrase": "x", "xywh": [1, 2, float("inf"), 4]}]}, "four finite numbers"),
        ({"boxes": [{"image": float("inf"), "phrase": "x", "xywh": [1, 2, 3, 4]}]}, "boxes are"),
        ({"boxes": [{"image": 1, "phrase": "x", "xywh": [1, 2, 3, 4]}]}, "on image 1"),
        ({"split": "dev"}, "split 'dev' is none of"),
        ({"split": ["train"]}, "is none of"),
        ({"labels": ["Edema"]}, "labels must be an object"),
        ({"labels": {"Edema": "1"}}, "label 'Edema' is '1'"),
        ({"labels": {"Edema": True}}, "label 'Edema' is True"),
        ({"prior_study_id": [1]}, "prior_study_id must be a text or a number"),
        ({"study_date": "March"}, "study_date 'March': no date"),
        ({"study_date": 20190101}, "study_date must be text"),
        ({"progression": {"Edema": "better"}}, "progression of 'Edema' is 'better'; use improving, stable, worsening"),
        ({"progression": ["Edema"]}, "progression must be an object"),
        ({"triplets": [["mass", "present"]]}, "is no triplet"),
        ({"triplets": [["mass", "lung", "maybe"]]}, "with a state of present, absent, uncertain"),
        ({"conversations": [{"from": "human"}]}, "conversations, turn 0"),
        ({"conversations": "hello"}, "conversations must be a list"),
        ({"answer_type": "yes"}, "answer_type 'yes' is none of CLOSED, OPEN"),
    ],
)
def test_every_field_is_checked_when_it_is_read(changes, message, tmp_path):
    path = write(tmp_path / "m.jsonl", RECORD | {"study_id": "s0"}, RECORD | changes)
    with pytest.raises(ValueError, match=f"m.jsonl:2: study 's1': .*{message}"):
        read_jsonl(path)


def test_numbers_as_ids_are_text(tmp_path):
    records = [
        RECORD | {"study_id": 50000001, "patient_id": 10000000},
        RECORD | {"study_id": 50000002.0, "patient_id": "10000000.0", "prior_study_id": 50000001},
    ]
    first, second = read_jsonl(write(tmp_path / "m.jsonl", *records))
    assert (first.study_id, first.patient_id) == ("50000001", "10000000")
    assert (second.study_id, second.patient_id, second.prior_study_id) == ("50000002", "10000000", "50000001")
    for wrong in (True, [1], float("inf")):
        with pytest.raises(ValueError, match="patient_id must be a text or a number"):
            Study.from_dict(RECORD | {"patient_id": wrong})


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the reference files are not here")
def test_priors_named_by_numbers_are_kept():
    studies = read_jsonl(FAULTS / "A_priors_int.jsonl")
    assert [study.prior_study_id for study in studies] == [None, *(study.study_id for study in studies[:-1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"study_id": "s\xe9"}', "m.jsonl:1: not UTF-8 .*--encoding"),
        (b"[" * 100_000, "m.jsonl:1: .*nested too deep"),
        (b'{"study_id": "\\ud800"}', "m.jsonl:1: .*half a surrogate pair"),
        (b'{"study_id": 1' + b"0" * 5000 + b"}", "m.jsonl:1: "),
        (b"{", "m.jsonl:1: not JSON at column 2"),
    ],
)
def test_a_broken_master_file_is_named_with_its_line(content, message, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(tmp_path / "m.jsonl")


def test_a_pipe_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "m.jsonl")
    for path, reason in ((tmp_path / "m.jsonl", "no plain file"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=reason):
            read_jsonl(path)


def test_a_mark_at_the_start_and_line_separators_are_data(tmp_path):
    text = "Clear.\u2028No effusion.\u0085Normal."
    (tmp_path / "m.jsonl").write_text(json.dumps(RECORD | {"findings": text}, ensure_ascii=False), encoding="utf-8-sig")
    (study,) = read_jsonl(tmp_path / "m.jsonl")
    assert study.findings == text


def test_a_field_may_not_hide_in_extra():
    with pytest.raises(ValueError, match="'progression' is a field"):
        Study("s", "p", extra={"progression": {"Edema": "stable"}})


def test_the_text_is_what_was_asked_for_and_nothing_else():
    study = Study("s", "p", findings="Lungs are clear. ", report="EXAMINATION: ...", comparison="None.")
    assert study.text(("impression",)) == "" == study.text("impression")
    assert study.text("findings,impression") == "Lungs are clear." == study.text()
    assert study.text("comparison, findings") == "None. Lungs are clear."
    assert study.text("impression|report") == "EXAMINATION: ..."
    assert study.text_source("impression|report") == ("report",) and study.text_source("impression") == ()
    assert Study("s", "p", report="All.").text() == "All."


@pytest.mark.parametrize("sections", ["finding", "findings,", "", "findings|", ("findings", "nope")])
def test_an_unknown_section_names_the_known_ones(sections):
    if sections == "findings,":  # a comma too many is no reason to stop
        assert Study("s", "p", findings="x").text(sections) == "x"
        return
    with pytest.raises(ValueError, match="findings, impression, report, indication, comparison"):
        Study("s", "p", findings="x").text(sections)


def test_frontal_boxes_are_those_on_the_frontal_image():
    boxes = (StudyBox(0, "a", (1, 1, 2, 2)), StudyBox(1, "b", (1, 1, 2, 2)))
    study = Study("s", "p", images=(StudyImage("l.png", "LATERAL"), StudyImage("f.png", "PA")), boxes=boxes)
    assert [box.phrase for box in study.frontal_boxes()] == ["b"]


def test_studies_without_the_section_are_left_out_and_named(tmp_path):
    records = [
        {"study_id": f"s{n}", "patient_id": f"p{n}", "split": "train", "images": [{"path": "a.png"}]} for n in range(4)
    ]
    records[0]["impression"] = "Normal."
    records[1]["findings"] = records[2]["report"] = "Clear."
    path = write(tmp_path / "m.jsonl", *records)
    splits = load_splits(str(path), verify_images=False, sections="impression")
    assert [study.study_id for study in splits.train] == ["s0"]
    assert splits.rejections() == {"no impression": 2, "empty text": 1}
    assert {entry.detail for entry in splits.rejected if entry.reason == "no impression"} == {
        "it has findings",
        "it has report",
    }
    assert len(load_splits(str(path), verify_images=False).train) == 3
    with pytest.raises(ValueError, match="--sections comparison asks for what no study has: it has"):
        load_splits(str(path), verify_images=False, sections="comparison")
    with pytest.raises(ValueError, match="'finding' is none of findings, impression"):
        load_splits(str(path), verify_images=False, sections="finding")
