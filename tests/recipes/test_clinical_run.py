"""A recipe that was asked for clinical metrics: columns where weights lie, one line of what is missing elsewhere."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.slow  # starts a launcher, whose run other tests read too


def test_columns_and_what_is_missing_stand_in_table_page_and_card(whole_run):
    run = whole_run("blip")
    results = json.loads((run / "test_results.json").read_text())
    assert 0 < abs(results["metrics"]["bertscore"]) and len(results["intervals"]["bertscore"]) == 2
    assert not any(name.startswith("chexbert") for name in results["metrics"])
    printed = (run.parents[2] / "stdout.txt").read_text()
    assert re.search(r"ok +clinical +bertscore: all is there", printed)
    assert re.search(r"warning +clinical +no chexbert: CheXbert: no chexbert.pth in scorers", printed)
    assert re.search(r"^bertscore +-?\d\.\d{3} ", printed.rpartition("test split")[2], re.MULTILINE)
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    for text in (page, card):
        assert "bertscore" in text and "no chexbert: CheXbert: no chexbert.pth in scorers" in text
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert all("bertscore" in line["scores"] for line in lines)
