"""The benchmark of rewards holds the right numbers against one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rewards as benchmark

REFERENCES = ["Left pleural effusion.", "Mild cardiomegaly.", "Pneumothorax.", "Left pleural effusion."]


def write(folder: Path, predictions: list[str], ciders: list[float]) -> Path:
    folder.mkdir()
    lines = [
        {
            "study_id": f"s{number}",
            "patient_id": f"p{number}",
            "reference": reference,
            "prediction": text,
            "scores": {"cider": cider},
        }
        for number, (reference, text, cider) in enumerate(zip(REFERENCES, predictions, ciders, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_differences_are_after_less_before_on_the_same_studies(tmp_path):
    before = write(tmp_path / "before", ["Lungs are clear."] * 4, [1.0, 2.0, 0.0, 1.0])
    after = write(tmp_path / "after", REFERENCES, [2.0, 2.0, 1.0, 1.0])
    differences = benchmark.compare(before, after)
    assert differences["findings_f1_micro"].difference == 1.0 and differences["findings_f1_micro"].low == 1.0
    assert differences["cider"].difference == pytest.approx(0.5)
    assert differences["distinct"] == (0.25, 0.75)
    (after / "predictions.jsonl").write_text((after / "predictions.jsonl").read_text().replace("s3", "s4"))
    with pytest.raises(ValueError, match="not scored on the same studies"):
        benchmark.compare(before, after)
