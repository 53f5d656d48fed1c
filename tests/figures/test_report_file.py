"""The report as a file: what it holds and refuses, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from made_run import make_run, write, write_lines
from PIL import Image

from hf_medvlm.figures import draw_all, report, write_report
from hf_medvlm.figures.report_data import MAP_SIDE, collect
from hf_medvlm.figures.results import load_run


def blobs(page, kind):
    chunks = re.findall(rf'<script type="application/json" id="{kind}-\d+">(.*?)</script>', page.read_text())
    return [blob for chunk in chunks for blob in json.loads(chunk)]


def test_it_is_one_file_that_names_no_address(tmp_path):
    folder = make_run(tmp_path / "out", studies=3)
    page = write_report(folder)
    assert page == folder / "report.html" and not (folder / report.IMAGES).exists()
    outside = re.findall(r"(?:https?:)?//[a-z][^\s\"'<]*", page.read_text())
    assert set(outside) == {"http://www.w3.org/2000/svg"}  # a name, not an address: nothing is fetched from it


def test_pictures_that_are_too_many_go_into_a_folder_and_come_back(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "out", studies=3)
    monkeypatch.setattr(report, "MOST_INLINE_BYTES", 100)
    sources = blobs(write_report(folder), "images")
    assert sources == [f"report_images/{n:06d}.jpg" for n in range(3)]
    assert all(Image.open(folder / source).size == (96, 96) for source in sources)
    monkeypatch.undo()
    assert all(s.startswith("data:image/jpeg;base64,") for s in blobs(write_report(folder), "images"))
    assert not (folder / report.IMAGES).exists()


def test_a_picture_used_by_several_studies_is_kept_once(tmp_path):
    folder = make_run(tmp_path / "out", studies=3)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    write_lines(folder / "predictions.jsonl", [line | {"images": ["p0.png"]} for line in lines])
    assert len(blobs(write_report(folder), "images")) == 1


def test_ten_thousand_pixels_a_side_become_a_small_picture(tmp_path):
    folder = make_run(tmp_path / "out", studies=1)
    Image.new("L", (10_000, 10_000), 77).save(tmp_path / "images" / "p0.png")
    page = write_report(folder)
    assert page.stat().st_size < 200_000
    picture = Image.open(io.BytesIO(base64.b64decode(blobs(page, "images")[0].split(",")[1])))
    assert picture.size == (512, 512)
    assert collect(load_run(folder)).studies[0]["images"][0]["size"] == [10_000, 10_000]


def test_a_heat_map_is_packed_small_and_faithfully(tmp_path):
    folder = make_run(tmp_path / "out", studies=1)
    line = json.loads((folder / "predictions.jsonl").read_text())
    line["maps"] = {
        "steps": [[-2.0, -1.0], [0.0, 2.0]],
        "blind": [[None, -1.0], [None, 1.0]],
        "flat": [[3.0] * 3] * 2,
        "fine": [[0.0] * 224] * 112,
    }
    write_lines(folder / "predictions.jsonl", [line])
    page = collect(load_run(folder))
    packed = [(m["width"], m["height"], list(base64.b64decode(page.maps[m["blob"]]))) for m in page.studies[0]["maps"]]
    assert packed[0] == (2, 2, [0, 64, 128, 255])
    assert packed[1] == (2, 2, [0, 0, 0, 255])
    assert packed[2] == (3, 2, [0] * 6)
    assert packed[3][:2] == (MAP_SIDE, MAP_SIDE // 2)


@pytest.mark.parametrize("missing", ["predictions.jsonl", "test_results.json", "trainer_state.json", "run.json"])
def test_what_is_missing_is_left_out(tmp_path, missing):
    folder = make_run(tmp_path / "out", studies=2)
    (folder / missing).unlink()
    assert write_report(folder).stat().st_size > 20_000
    assert draw_all(folder)


def test_scores_of_validation_stand_in_where_no_test_was_scored(tmp_path):
    folder = make_run(tmp_path / "out", studies=2)
    (folder / "test_results.json").unlink()
    assert load_run(folder).split == "validate" and load_run(folder).metrics["bleu4"] == 0.31


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="holds no run.*--output_dir"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("text, problem", [("{", "not JSON"), ("[1]", "expected one JSON object, found list")])
def test_a_broken_results_file_is_named(tmp_path, text, problem):
    (tmp_path / "test_results.json").write_text(text)
    with pytest.raises(ValueError, match=f"test_results.json.*{problem}"):
        load_run(tmp_path)


def test_a_broken_prediction_is_named_with_its_line(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"study_id": "a"}\n\n{"study_id":\n')
    with pytest.raises(ValueError, match=r"predictions.jsonl:3: not JSON"):
        load_run(tmp_path)


def test_a_classifier_without_text_gets_likelihoods_and_no_false_additions(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    line = {"study_id": "a", "scores": {"Edema": 0.9, "Fracture": 0.2, "Cardiomegaly": 0.7}}
    line |= {"findings_reference": {"Edema": 1, "Fracture": None, "Cardiomegaly": 0}}
    line |= {"findings_prediction": {"Edema": 1, "Fracture": 1, "Cardiomegaly": 1}}
    write_lines(folder / "predictions.jsonl", [line])
    study = collect(load_run(folder)).studies[0]
    assert study["likely"] == [["Edema", 0.9], ["Cardiomegaly", 0.7], ["Fracture", 0.2]]
    assert [(row[0], row[3]) for row in study["findings"]] == [("Edema", "agree"), ("Cardiomegaly", "contradict")]
    assert study["scores"] == {"agreement": 0.5}


def test_margins_and_changes_over_time_are_compared_too(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    line = {"study_id": "a", "findings_reference": {"Edema": 1, "Fracture": 0}}
    line |= {"zero_shot": {"Edema": 0.02, "Fracture": 0.1}}
    line |= {"progression_reference": {"Edema": "worsening"}, "progression_prediction": {"Edema": "stable"}}
    write_lines(folder / "predictions.jsonl", [line])
    study = collect(load_run(folder)).studies[0]
    assert study["findings"] == [
        ["Edema", 1, 1, "agree"],
        ["Fracture", 0, 1, "contradict"],
        ["Edema over time", "worsening", "stable", "contradict"],
    ]
    assert study["scores"] == {"agreement": 0.3333}


def test_best_worst_and_typical_are_told_by_a_score_that_may_be_better_small(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    lines = [{"study_id": str(n), "scores": {"rank": n}} for n in range(20)]
    write(folder / "test_results.json", {"facts": {"rank": {"group": "Retrieval", "better": "lower", "unit": "rank"}}})
    write_lines(folder / "predictions.jsonl", lines)
    page = collect(load_run(folder))
    badges = {
        b: sorted(int(s["id"]) for s in page.studies if s.get("badge") == b) for b in ("best", "worst", "typical")
    }
    assert badges["best"] == [0, 1, 2] and badges["worst"] == [17, 18, 19]
    assert set(badges["typical"]) <= {8, 9, 10, 11}


def test_the_page_without_the_machine_it_was_made_on(tmp_path):
    folder = make_run(tmp_path / "out", studies=1)
    write_lines(folder / "predictions.jsonl", [{"study_id": "a", "images": ["gone.png"]}])
    write(folder / "run.json", json.loads((folder / "run.json").read_text()))
    assert str(tmp_path) not in write_report(folder).read_text()
