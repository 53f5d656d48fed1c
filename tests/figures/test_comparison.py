"""`hf-medvlm compare`: differences are the scores' own, intervals are by patient, other studies are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_run import make_run, write, write_lines

from hf_medvlm.__main__ import main
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.reports import score_reports
from hf_medvlm.figures.comparison import compare_runs
from hf_medvlm.metrics.findings import finding_scores, label_matrix
from hf_medvlm.metrics.intervals import paired_rows, paired_test

STUDIES = [Study(f"s{n}", f"p{n // 2}") for n in range(12)]
SICK, NORMAL = "There is a small left pleural effusion.", "The lungs are clear. No effusion."
REFERENCES = [SICK if n % 3 == 0 else NORMAL for n in range(12)]
GOOD = [text if n != 4 else SICK for n, text in enumerate(REFERENCES)]
POOR = [NORMAL] * 11 + ["Lungs clear."]


def saved(folder: Path, texts: list[str], references: list[str] = REFERENCES, studies: list[Study] = STUDIES) -> Path:
    scores = score_reports(texts, references, studies)
    folder.mkdir(parents=True)
    write(folder / "test_results.json", scores.to_dict())
    write_lines(folder / "predictions.jsonl", json.loads(json.dumps(scores.predictions).replace("NaN", "null")))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("runs")
    return saved(home / "poor" / "1", POOR), saved(home / "good" / "1", GOOD)


def test_differences_are_those_of_the_results_with_intervals_by_patient(runs, tmp_path, capsys):
    main(["compare", *map(str, runs), "--out", str(tmp_path), "--resamples", "200"])
    compared = json.loads((tmp_path / "comparison.json").read_text())["metrics"]
    results = [json.loads((run / "test_results.json").read_text())["metrics"] for run in runs]
    for name in ("bleu4", "rougeL", "cider", "findings_f1_micro", "audit_omitted"):
        assert compared[name]["values"] == pytest.approx([one[name] for one in results], abs=1e-9)
        assert compared[name]["differences"][0]["difference"] == pytest.approx(results[1][name] - results[0][name])
    each = [
        [json.loads(line)["scores"]["rougeL"] for line in (run / "predictions.jsonl").read_text().splitlines()]
        for run in runs
    ]
    by_hand = paired_test(each[1], each[0], [study.patient_id for study in STUDIES], resamples=200)
    assert compared["rougeL"]["differences"][0] == pytest.approx(vars(by_hand))
    printed = capsys.readouterr().out
    assert "good/1 - poor/1" in printed and f"{by_hand.difference:+.3f} [{by_hand.low:+.3f}" in printed
    page = (tmp_path / "comparison.html").read_text()
    assert "<h2>good/1: 5 studies became better, 1 worse, 6 neither</h2>" in page and "<script" not in page
    with open(tmp_path / "studies.csv") as handle:
        rows = {row["study_id"]: row for row in csv.DictReader(handle)}
    assert len(rows) == 12 and float(rows["s0"]["agreement: good/1"]) > float(rows["s0"]["agreement: poor/1"])


def test_a_classifier_s_area_is_compared_by_patient(tmp_path):
    rng = np.random.default_rng(0)
    names = ["Edema", "Pneumonia"]
    truth = rng.integers(2, size=(40, 2))
    folders, areas = [], []
    for strength in (0.5, 3.0):
        values = truth * strength + rng.normal(size=truth.shape)
        lines = [
            {"study_id": f"s{n}", "patient_id": f"p{n // 2}", "scores": dict(zip(names, row, strict=True))}
            | {"probabilities": dict(zip(names, row, strict=True))}
            | {"findings_reference": dict(zip(names, map(int, states), strict=True))}
            for n, (row, states) in enumerate(zip(values.tolist(), truth, strict=True))
        ]
        area = finding_scores(values, label_matrix([line["findings_reference"] for line in lines], names), names)
        facts = {"mean_auc": {"group": "Findings", "better": "higher", "unit": "fraction"}}
        folder = tmp_path / f"at {strength}"
        folder.mkdir()
        write(folder / "test_results.json", {"metrics": {"mean_auc": area["mean_auc"]}, "facts": facts, "n": 40})
        write_lines(folder / "predictions.jsonl", lines)
        folders.append(folder)
        areas.append(area["mean_auc"])
    (metric,) = compare_runs(folders, resamples=100).metrics
    assert metric.values == pytest.approx(areas)
    (test,) = metric.tests
    assert test.difference == pytest.approx(areas[1] - areas[0]) and 0 < test.low < test.difference < test.high
    assert test.p_value < 0.05


def test_what_no_sum_gives_is_tested_as_what_a_sum_gives():
    rng = np.random.default_rng(1)
    first, second, groups = rng.normal(size=30), rng.normal(size=30) + 0.3, [n // 3 for n in range(30)]
    slow = paired_rows(lambda values, rows: float(values[rows].mean()), first, second, groups, resamples=300)
    fast = paired_test(first, second, groups, resamples=300)
    assert (slow.difference, slow.low, slow.high) == pytest.approx((fast.difference, fast.low, fast.high))
    assert slow.p_value == pytest.approx(fast.p_value, abs=0.1)
    with pytest.raises(ValueError, match="pair them"):
        paired_rows(lambda values, rows: 0.0, first, second[:5])


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="two runs or more, each once"):
        compare_runs([runs[0], runs[0]])
    fewer = saved(tmp_path / "fewer", GOOD[:10], REFERENCES[:10], STUDIES[:10])
    with pytest.raises(ValueError, match=r"scored on other studies: 2 only in 1|2 only in .*\(s10, s11\)"):
        compare_runs([runs[0], fewer])
    other = saved(tmp_path / "other", GOOD, [NORMAL] * 12)
    with pytest.raises(ValueError, match="held against other reference texts, in study 's0' for one"):
        compare_runs([runs[0], other])
    family = make_run(tmp_path / "family" / "1", studies=2)
    write(
        family / "test_results.json",
        {"metrics": {"mean_auc": 0.5}, "facts": {"mean_auc": {"group": "Findings", "better": "higher"}}},
    )
    with pytest.raises(ValueError, match=r"no score in common, .*: Text, .*: Findings"):
        compare_runs([runs[0], family])
    lines = [json.loads(line) for line in (runs[0] / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("reference"), line.pop("findings_reference")
    told = tmp_path / "told"
    told.mkdir()
    write_lines(told / "predictions.jsonl", lines)
    with pytest.raises(ValueError, match="predicted without references"):
        compare_runs([runs[0], told])
