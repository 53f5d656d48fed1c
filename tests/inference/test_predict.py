"""`hf-medvlm predict`: whatever images come, in one process or two, killed or not; and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import predict as recipe
import pytest
from families import FAMILIES
from launch import together
from PIL import Image
from safetensors.numpy import load_file
from saved_families import save_family, without_texts
from steps import make_trainer

from hf_medvlm.data.locks import LOCK
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import write_jsonl
from hf_medvlm.figures.report_data import collect
from hf_medvlm.figures.results import load_run
from hf_medvlm.inference import load
from hf_medvlm.inference import predict as engine
from hf_medvlm.inference.studies import find_studies, read_rexrank


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def predict(*words: object) -> Path:
    return recipe.main([*map(str, words), "--workers", "0"])


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    """name -> (folder of the model, its family)."""
    done: dict[str, tuple] = {}

    def of(name: str) -> tuple:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = folder, save_family(name, splits, folder)
        return done[name]

    return of


@pytest.fixture(scope="module")
def master(splits, tmp_path_factory) -> Path:
    """Seven test studies, with the others of their patients behind them, and not a word of text."""
    path = tmp_path_factory.mktemp("master") / "new.jsonl"
    patients = {study.patient_id for study in splits.test[:7]}
    others = [study for study in splits.test[7:] if study.patient_id in patients]
    write_jsonl(without_texts([*splits.test[:7], *others]), path)
    return path


@pytest.fixture
def folder(splits, tmp_path) -> Path:
    """Four radiographs in two folders, a broken one, and a file that is none."""
    images = tmp_path / "new images"
    for number, study in enumerate(splits.test[:4]):
        path = images / ("ward A" if number < 2 else "ward B") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((splits.image_folder / study.frontal.path).read_bytes())
    (images / "broken.png").write_bytes(b"no picture")
    (images / "notes.txt").write_text("not a picture")
    return images


@pytest.mark.slow
def test_two_processes_say_what_the_evaluation_said(saved, splits, master, root, tmp_path):
    """Every family in one launch: each study once, in the order of the file, as the evaluation wrote it."""
    named = [f"{name}={saved(name)[0]}" for name in sorted(FAMILIES)]
    together(root / "tests" / "inference" / "predict_all.py", tmp_path, master, splits.image_folder, *named)
    for name in FAMILIES:
        told = lines(tmp_path / name)
        assert [line["study_id"] for line in told[:7]] == [study.study_id for study in splits.test[:7]]
        assert len({line["study_id"] for line in told}) == len(told)
        trainer = make_trainer(saved(name)[1], splits, tmp_path / "trainer")
        for ours, wanted in zip(told, trainer.scores(StudyRows(splits.test[:7])).predictions, strict=False):
            keys = {"prediction", "zero_shot", "progression_prediction"} & ours.keys() & wanted.keys()
            assert keys
            for key in keys:
                if key == "zero_shot":
                    assert ours[key] == pytest.approx(wanted[key], abs=2e-5)
                elif key == "prediction":
                    assert ours[key] == wanted[key]
                else:
                    assert wanted[key].items() <= ours[key].items()


def test_a_folder_gives_text_table_page_and_the_names_of_what_is_broken(saved, folder, tmp_path, capsys):
    out = predict(saved("blip")[0], folder, "--out", tmp_path / "out")
    told = lines(out)
    assert [line["study_id"] for line in told] == ["ward A/0", "ward A/1", "ward B/2", "ward B/3"]
    reports = load(saved("blip")[0]).report([folder / line["images"][0]["path"] for line in told])
    assert [line["prediction"] for line in told] == reports
    with open(out / "predictions.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["prediction"] for row in rows] == reports and rows[0]["image"] == "ward A/0.png"
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {entry["file"].rpartition("/")[2]: entry["reason"] for entry in rejected} == {
        "broken.png": "image cannot be read",
        "notes.txt": "no image",
    }
    printed = capsys.readouterr().out
    assert "4 studies" in printed and "2 left out" in printed and "rejected.jsonl" in printed
    page = collect(load_run(out))
    assert page.head["references"] is False and all(page.jpegs) and not any(s["findings"] for s in page.studies)
    assert (out / "report.html").is_file() and not (out / "parts").exists()


def test_findings_embeddings_and_maps(saved, folder, tmp_path):
    out = predict(saved("biovil_t")[0], folder, "--out", tmp_path / "out", "--maps", 2)
    told, predictor = lines(out), load(saved("biovil_t")[0])
    paths = [folder / line["images"][0]["path"] for line in told]
    rows = load_file(out / "embeddings.safetensors")["image_embeds"]
    np.testing.assert_allclose(rows, predictor.embed(paths), atol=1e-5)
    assert json.loads((out / "embeddings_ids.json").read_text()) == [line["study_id"] for line in told]
    for line, likely in zip(told, predictor.findings(paths), strict=True):
        assert line["probabilities"] == pytest.approx(likely, abs=1e-6)
    medklip = lines(predict(saved("medklip")[0], folder, "--out", tmp_path / "medklip", "--maps", 2))
    shown = [line for line in medklip if line.get("maps")]
    assert shown, "a map needs no box"
    for line in shown:
        present = [name for name, state in line["findings_prediction"].items() if state]
        likeliest = sorted(present, key=lambda name: -line["probabilities"][name])[:2]
        assert list(line["maps"]) == likeliest
        name, grid = likeliest[0], np.array(line["maps"][likeliest[0]])
        whole = load(saved("medklip")[0]).ground(folder / line["images"][0]["path"], name)
        assert grid.shape == (32, 32) and np.abs(grid - whole[::2, ::2]).max() < 0.1 * np.ptp(whole) + 1e-4


def test_killed_and_started_again_it_does_only_what_is_missing(saved, master, splits, tmp_path, monkeypatch):
    words = (saved("dual_encoder")[0], master, "--image_folder", splits.image_folder, "--batch_size", 1)
    whole = lines(predict(*words, "--out", tmp_path / "whole"))
    counted, plain = [], engine.Predictor.predict

    def dies(self, batch):
        if len(counted) == 3:
            raise KeyboardInterrupt
        counted.append(1)
        return plain(self, batch)

    monkeypatch.setattr(engine.Predictor, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(*words, "--out", tmp_path / "cut")
    assert not (tmp_path / "cut" / "predictions.jsonl").exists()
    counted.clear()
    monkeypatch.setattr(engine.Predictor, "predict", lambda self, batch: (counted.append(1), plain(self, batch))[1])
    assert lines(predict(*words, "--out", tmp_path / "cut")) == whole
    assert len(counted) == len(whole) - 3
    counted.clear()
    predict(*words, "--out", tmp_path / "cut")
    assert not counted, "a finished folder is left as it is"


def test_predictions_of_another_model_are_not_mixed_in(saved, folder, tmp_path):
    out = predict(saved("dual_encoder")[0], folder, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="another value of model"):
        predict(saved("patch_ib")[0], folder, "--out", out)
    with pytest.raises(ValueError, match="another value of maps"):
        predict(saved("dual_encoder")[0], folder, "--out", out, "--maps", 1)
    predict(saved("patch_ib")[0], folder, "--out", out, "--overwrite")
    assert json.loads((out / "run.json").read_text())["model_class"] == "PatchIBModel"
    with pytest.raises(ValueError, match=r"holds a run"):
        (out / "settings.json").unlink()
        predict(saved("dual_encoder")[0], folder, "--out", out)


def test_a_folder_that_another_process_writes_to_is_refused(saved, folder, tmp_path):
    import os
    import socket

    import psutil

    above = psutil.Process(os.getppid())  # lives as long as this test does
    holder = {"host": socket.gethostname(), "pid": above.pid, "started": round(above.create_time(), 2), "since": "now"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).write_text(json.dumps(holder))
    with pytest.raises(ValueError, match=f"in use by process {above.pid} .*or name another --out$"):
        predict(saved("medklip")[0], folder, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_one_file_with_the_one_before_it(saved, folder, tmp_path):
    now, before = folder / "ward A" / "0.png", folder / "ward B" / "3.png"
    told = lines(predict(saved("biovil_t")[0], now, "--previous", before, "--out", tmp_path / "out"))
    wanted = load(saved("biovil_t")[0]).progression(now, before)
    assert told[0]["study_id"] == "0" and told[0]["progression_prediction"] == wanted
    alone = lines(predict(saved("biovil_t")[0], now, "--out", tmp_path / "alone"))
    assert len(alone) == 1 and "progression_prediction" not in alone[0]


def test_a_question(saved, folder, tmp_path):
    question = "Is there an effusion?"
    told = lines(predict(saved("llava")[0], folder, "--question", question, "--out", tmp_path / "out"))
    predictor = load(saved("llava")[0])
    for line in told:
        assert line["question"] == question
        assert line["prediction"] == predictor.ask(folder / line["images"][0]["path"], question)
    with pytest.raises(ValueError, match=r"no \.ask"):
        predict(saved("blip")[0], folder, "--question", question, "--out", tmp_path / "blip")


def test_a_table_needs_no_text_column(saved, folder, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text(
        "image,study_id,view\nward A/0.png,a,PA\nward A/1.png,a,LATERAL\nward B/2.png,b,AP\n../x.png,c,PA\n"
    )
    out = predict(saved("blip")[0], table, "--image_folder", folder, "--out", tmp_path / "out")
    assert [[line["study_id"], len(line["images"])] for line in lines(out)] == [["a", 2], ["b", 1]]
    assert "leaves the image folder" in (out / "rejected.jsonl").read_text()


def test_rexrank_goes_out_as_it_came_in_with_a_prediction(saved, folder, tmp_path):
    records = {
        "s1": {
            "image_path": ["ward A/0.png", "ward A/1.png"],
            "key_image_path": "ward A/1.png",
            "frontal_lateral": ["Lateral", "Frontal"],
            "context": "Indication: Cough. Comparison: None.",
            "report": "Findings: never looked at.",
        },
        "s2": {"image_path": "broken.png", "context": "Indication: Fever"},
        "s3": {"dicom_id": ["2"], "img_root_dir": "/ward B", "split": "test"},
    }
    (folder / "ward B" / "2.jpg").write_bytes((folder / "ward B" / "2.png").read_bytes())
    source, out = tmp_path / "in.json", tmp_path / "sent" / "out.json"
    source.write_text(json.dumps(records))
    predict(saved("blip")[0], source, "--image_folder", folder, "--rexrank", "--out", out)
    sent = json.loads(out.read_text())
    predictor = load(saved("blip")[0])
    assert list(sent) == list(records)
    assert {name: {k: v for k, v in r.items() if k != "model_prediction"} for name, r in sent.items()} == records
    assert sent["s1"]["model_prediction"] == predictor.report(folder / "ward A/1.png")
    assert sent["s2"]["model_prediction"] == ""
    assert sent["s3"]["model_prediction"] == predictor.report(folder / "ward B/2.jpg")
    studies, _ = read_rexrank(source, folder)
    assert [study.indication for study in studies.studies] == ["Cough.", "Fever", ""]
    with pytest.raises(ValueError, match=r"no \.report"):
        predict(saved("dual_encoder")[0], source, "--image_folder", folder, "--rexrank", "--out", tmp_path / "x.json")


def test_views_of_one_study(splits, tmp_path):
    for name in ("p1/s1/view_lateral.png", "p1/s1/view_pa.png", "p1/s2/view_pa.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    studies = find_studies(tmp_path, folder_is_study=True)
    assert {s.study_id: [(i.path, i.view) for i in s.images] for s in studies.studies} == {
        "p1/s1": [("p1/s1/view_pa.png", "PA"), ("p1/s1/view_lateral.png", "LATERAL")],
        "p1/s2/view_pa": [("p1/s2/view_pa.png", "PA")],
    }
    assert len(find_studies(tmp_path).studies) == 3


def test_dicom_files_of_one_study_are_one_study(tmp_path):
    import pydicom
    from pydicom.data import get_testdata_file

    source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for number, (uid, view) in enumerate([("1.2.3", "LL"), ("1.2.3", "PA"), ("1.2.4", "AP")]):
        source.StudyInstanceUID, source.ViewPosition = uid, view
        source.save_as(tmp_path / f"IM{number}")
    studies = find_studies(tmp_path)
    assert [[i.view for i in s.images] for s in studies.studies] == [["PA", "LATERAL"], ["AP"]]
    assert not any("1.2." in s.study_id for s in studies.studies), "identifiers stay in the files"


def test_hospital_files_as_they_are(saved, shared, tmp_path):
    """Real DICOM of four transfer syntaxes, and real PNG and JPEG, through one command each."""
    told = lines(predict(saved("blip")[0], shared / "data/dicom", "--out", tmp_path / "dicom"))
    assert len(told) == len(list((shared / "data/dicom").glob("*.dcm")))
    table = shared / "data/real_cxr/metadata.csv"
    first = tmp_path / "first.csv"
    first.write_text("\n".join(table.read_text(encoding="utf-8").splitlines()[:6]) + "\n", encoding="utf-8")
    told = lines(predict(saved("medklip")[0], first, "--image_folder", table.parent, "--out", tmp_path / "real"))
    assert told and all(0 <= p <= 1 for line in told for p in line["probabilities"].values())


def test_nothing_to_predict_is_said(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    errors = {"nowhere": "there is no such file or folder", "empty": "no image in it", "bad": "none of 1 studies"}
    for name, error in errors.items():
        with pytest.raises(ValueError, match=error):
            predict(saved("blip")[0], tmp_path / name, "--out", tmp_path / "out")


def test_a_study_keeps_its_prior_from_a_master_file(saved, splits, tmp_path):
    studies = [study for part in splits.studies.values() for study in part]
    later = next(study for study in studies if study.prior_study_id in {s.study_id for s in studies})
    prior = next(study for study in studies if study.study_id == later.prior_study_id)
    path = tmp_path / "m.jsonl"
    write_jsonl(without_texts([later, replace(prior, split=None)]), path)
    told = lines(predict(saved("biovil_t")[0], path, "--image_folder", splits.image_folder, "--out", tmp_path / "out"))
    files = [splits.image_folder / study.frontal.path for study in (later, prior)]
    assert told[0]["progression_prediction"] == load(saved("biovil_t")[0]).progression(*files)
    assert "progression_prediction" not in told[1]
