"""`python -m hf_medvlm`: what its commands print, and that they tell nothing private."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_run import make_run

from hf_medvlm import doctor
from hf_medvlm.__main__ import main


def test_the_doctor_names_what_a_bug_report_needs():
    described = doctor.describe()
    assert described["packages"].keys() >= {"torch", "transformers", "numpy"}
    assert described["system"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(described["programs"]) == set(doctor.PROGRAMS)
    text = doctor.report()
    assert text.startswith("hf_medvlm ") and "missing" not in text


def test_the_doctor_tells_nothing_private():
    secrets = {"HF_TOKEN": "hf_sesame", "HF_HOME": "/data/secret", "HF_ENDPOINT": "http://inside.hospital"}
    command = [sys.executable, "-m", "hf_medvlm", "doctor"]
    answer = subprocess.run(command, env=os.environ | secrets, capture_output=True, text=True, check=True).stdout
    for secret in (*secrets.values(), str(Path.home()), os.getcwd(), os.uname().nodename):
        assert secret not in answer
    assert "HF_TOKEN               set" in answer


def test_the_doctor_says_which_clinical_weights_lie_in_a_folder(tmp_path, capsys):
    (tmp_path / "distilroberta-base").mkdir()
    (tmp_path / "distilroberta-base" / "config.json").write_text("{}")
    main(["doctor", "--clinical_weights", str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"bertscore +all is there\n", printed) and re.search(r"temporal_f1 +all is there\n", printed)
    assert re.search(r"chexbert +CheXbert: no chexbert.pth in DIR, nor in DIR/chexbert", printed)
    assert re.search(r"radcliq +CheXbert: ", printed) and re.search(r"judge_green +.*--judge_url", printed)
    assert str(tmp_path) not in printed


def test_a_missing_package_is_answered_with_the_way_out(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "transformers" else real(name))
    assert "missing: transformers; run `pip install" in doctor.report()


def test_report_draws_a_finished_run_anew(tmp_path, capsys, drawing, monkeypatch):
    monkeypatch.setattr("hf_medvlm.figures.draw_all", drawing)
    folder = make_run(tmp_path / "out", studies=2)
    main(["report", str(folder)])
    printed = capsys.readouterr().out.split()
    assert str(folder / "report.html") in printed and str(folder / "README.md") in printed
    assert all(Path(path).is_file() for path in printed) and str(folder / "figures" / "loss_curve.png") in printed


def test_push_dry_run_lists_and_sends_nothing(tmp_path, capsys):
    folder = make_run(tmp_path / "out", studies=1)
    (folder / "config.json").write_text(json.dumps({}))
    main(["push", str(folder), "me/x", "--dry_run"])
    names = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "nowhere")])
    assert stop.value.code == 1
    assert "no folder" in capsys.readouterr().err
