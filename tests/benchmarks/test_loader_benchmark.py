"""The loader's benchmark runs, small, and its slow twin is the old way."""

from __future__ import annotations

import json
import sys

import loader
import pytest


def test_every_way_is_timed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["loader.py", "--small", "--rounds", "1", "--device", "cpu", "--json"])
    loader.main()
    timed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"full-size JPEG", "512-pixel JPEG", "DICOM"} <= timed.keys()
    assert all(rate > 0 for rate in timed["DICOM"].values())
    on_cpu = timed["full-size JPEG on cpu"]
    assert 0 <= on_cpu["waiting"] < 1 and on_cpu["train_images_per_second"] > 0
