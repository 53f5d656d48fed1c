"""No cell of a CSV that we write is taken for a formula by a spreadsheet."""

import csv
import io

import pytest

from hf_medvlm.data.files import plain_cell
from hf_medvlm.data.summary import to_csv

FORMULA = '=HYPERLINK("http://x","y")'


@pytest.mark.parametrize("text", [FORMULA, "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-"])
def test_what_begins_like_a_formula_is_text(text):
    assert plain_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.25", "+3", "-1e-3", "Normal.", "", 5, -5, None, "a=b"])
def test_numbers_and_texts_stay_as_they_are(value):
    assert plain_cell(value) == value


def test_the_statistics_of_a_corpus_with_such_names():
    states = {"present": 1, "absent": 0, "uncertain": 0, "not_mentioned": 0}
    summary = {"splits": {"all": {"studies": 1}}, "findings": {FORMULA: {"train": states}}, "left_out": {"@x": 1}}
    rows = list(csv.reader(io.StringIO(to_csv(summary))))
    assert [row for row in rows if any(cell[:1] in "=@" for cell in row if cell)] == []
    assert rows[2][:3] == ["findings", f"'{FORMULA}", "train present"]
