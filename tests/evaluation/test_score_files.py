"""`hf-medvlm score`: any system's reports, from files of many kinds, brought together by study."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from hf_medvlm.data.report_texts import PREDICTION, REFERENCE, pair_reports, read_reports
from hf_medvlm.metrics.clinical.wordlists import bleu2_rexrank
from hf_medvlm.metrics.intervals import bootstrap_interval
from hf_medvlm.metrics.text import score_texts

SICK, NORMAL = "There is a small left pleural effusion.", "The lungs are clear. No effusion."
FINDINGS = [SICK, NORMAL, SICK, NORMAL]
SAID = [SICK, NORMAL, NORMAL, "Lungs clear."]


@pytest.fixture(scope="module")
def score():
    """`main` of the recipe."""
    path = Path(__file__).parents[2] / "recipes" / "score.py"
    spec = importlib.util.spec_from_file_location("score_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def references(tmp_path) -> Path:
    rows = [f'{n}.0,p{n // 2},"{text}","Impression {n}."' for n, text in enumerate(FINDINGS, start=1)]
    return write_csv(tmp_path / "references.csv", "study_id,subject_id,findings,impression", rows)


@pytest.fixture
def predictions(tmp_path) -> Path:
    rows = [{"study_id": str(n), "prediction": text} for n, text in enumerate(SAID, start=1)]
    return write_jsonl(tmp_path / "predictions.jsonl", rows[::-1])


def test_scores_are_those_of_the_texts_with_intervals_by_patient_and_baselines(
    score, references, predictions, tmp_path
):
    train = write_jsonl(tmp_path / "train.jsonl", [{"study_id": n, "findings": NORMAL} for n in range(3)])
    words = ["--sections", "findings", "--train_reports", train, "--clinical_metrics", "temporal_f1,chexbert"]
    out = score([str(word) for word in (references, predictions, "--out", tmp_path / "out", *words)])
    results = json.loads((out / "test_results.json").read_text())
    expected = score_texts(SAID, FINDINGS, ["p0", "p1", "p1", "p2"])
    assert results["metrics"]["bleu4"] == pytest.approx(expected.metrics["bleu4"])
    assert results["intervals"]["rougeL"] == pytest.approx(expected.intervals["rougeL"])
    assert set(results["baselines"]) == {"constant_normal", "most_frequent", "shuffled"}
    assert results["metrics"]["audit_omitted"] == pytest.approx(0.5) and results["metrics"]["temporal_f1"] == 1
    assert "chexbert_f1_micro_14" not in results["metrics"] and "chexbert" in results["figures"]["missing_metrics"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["study_id"], line["patient_id"]) for line in lines] == [
        ("1", "p0"),
        ("2", "p1"),
        ("3", "p1"),
        ("4", "p2"),
    ]
    assert "Where does it fail" in (out / "report.html").read_text()
    # a folder of results is read as a run is, and gives the same again
    again = score([str(out), "--out", str(tmp_path / "again")])
    assert json.loads((again / "test_results.json").read_text())["metrics"]["bleu4"] == results["metrics"]["bleu4"]
    with pytest.raises(ValueError, match="holds a finished run"):
        score([str(out), "--out", str(out)])


def test_rexrank_goes_in_and_out_with_its_columns(score, tmp_path, capsys):
    records = {
        f"s{n}": {"image_path": [f"./a/{n}.png"], "findings": text, "impression": "None.", "context": "Age:30-40."}
        for n, text in enumerate(FINDINGS)
    }
    source = tmp_path / "test.json"
    source.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="no model_prediction in it, only references"):
        score([str(source), "--out", str(tmp_path / "none")])
    for name, text in zip(records, SAID, strict=True):
        records[name]["model_prediction"] = f"Findings: {text} Impression: None."
    submission = tmp_path / "submission.json"
    submission.write_text(json.dumps(records))
    out = score([str(source), str(submission), "--rexrank", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    pairs = [(r["model_prediction"], f"Findings: {r['findings']} Impression: None.") for r in records.values()]
    each = [bleu2_rexrank(*pair) for pair in pairs]
    low, high = bootstrap_interval(each)
    assert f"{sum(each) / 4:.3f}" in printed and f"{low:.3f} to {high:.3f}" in printed
    assert "no BERTScore: " in printed and "no 1/RadCliQ-v1: " in printed and "constant normal" in printed
    baselines = json.loads((out / "test_results.json").read_text())["baselines"]
    assert 0 < baselines["constant_normal"]["bleu2_rexrank"] < 1
    written = json.loads((out / "rexrank.json").read_text())
    assert {name: record.pop("report") for name, record in written.items()} == dict(
        zip(records, [reference for _, reference in pairs], strict=True)
    )
    assert written == records


def test_what_has_no_partner_is_named(score, references, predictions, tmp_path, capsys):
    lines = predictions.read_text().splitlines()
    some = tmp_path / "some.jsonl"
    some.write_text(
        "\n".join([*lines[1:], '{"study_id": "77", "prediction": "Other."}', '{"study_id": 5, "prediction": " "}'])
    )
    with references.open("a") as handle:
        handle.write("5,p9,Something.,\n6,p9,,\n")
    with pytest.raises(ValueError, match=r"2 of 6 references have no prediction: 4, 6; --missing skip"):
        score([str(references), str(some), "--out", str(tmp_path / "a")])
    for missing, studies in (("skip", 4), ("empty", 5)):
        out = score([str(references), str(some), "--missing", missing, "--out", str(tmp_path / missing)])
        printed = capsys.readouterr().out
        assert json.loads((out / "test_results.json").read_text())["n"] == studies
        assert "left out, no reference: 1: 77" in printed
        assert ("left out, no prediction: 2: 4, 6" in printed) == (missing == "skip")
        assert f"empty predictions, scored as they are: {1 if missing == 'skip' else 2}: " in printed
        left = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        assert {entry["reason"] for entry in left} >= {"no reference", "empty reference"}


def test_files_that_cannot_be_scored_are_one_line(references, predictions, tmp_path):
    doubled = write_jsonl(tmp_path / "d.jsonl", [{"study_id": n, "prediction": "x"} for n in ("a", "b", "a")])
    with pytest.raises(ValueError, match=r"d\.jsonl: 1 study id\(s\) stand twice, with the lines: a \(1, 3\)"):
        read_reports(doubled, PREDICTION)
    other = write_jsonl(tmp_path / "o.jsonl", [{"study_id": "z9", "prediction": "x"}])
    with pytest.raises(ValueError, match=r"no study id of .*such as 1, 2.* stands in .*such as z9"):
        pair_reports(read_reports(references, REFERENCE), read_reports(other, PREDICTION))
    with pytest.raises(ValueError, match=r"no column 'txt'.*columns: study_id, prediction"):
        read_reports(predictions, PREDICTION, "txt")
    with pytest.raises(
        ValueError, match="no column that is known to hold a reference; name it with --reference_column"
    ):
        read_reports(write_jsonl(tmp_path / "n.jsonl", [{"study_id": "1", "x": "y"}]), REFERENCE)
    with pytest.raises(ValueError, match="no column of study ids; name it with --id_column"):
        read_reports(write_jsonl(tmp_path / "i.jsonl", [{"report": "y"}]), REFERENCE)
    with pytest.raises(ValueError, match=r"t\.jsonl:1: prediction must be text, got 5"):
        read_reports(write_jsonl(tmp_path / "t.jsonl", [{"study_id": "1", "prediction": 5}]), PREDICTION)
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"study_id": "1", "prediction": "x"}\n{"study_id"\n')
    with pytest.raises(ValueError, match=r"1 broken line\(s\); the first: .*b\.jsonl:2"):
        read_reports(broken, PREDICTION)
    with pytest.raises(ValueError, match="there is no such file or run"):
        read_reports(tmp_path / "nowhere.csv", REFERENCE)


def test_columns_are_known_by_their_common_names(tmp_path):
    table = write_csv(tmp_path / "t.csv", "StudyID;Ground Truth;split", ["1;One.;test", "2;Two.;train"])
    corpus = read_reports(table, REFERENCE, split="test")
    assert corpus.texts == {"1": "One."} and "divided by semicolons" in corpus.notes[0]
    plain = tmp_path / "p.json"
    plain.write_text(json.dumps({"1": "One.", "2": "Two."}))
    assert read_reports(plain, PREDICTION).texts == {"1": "One.", "2": "Two."}
