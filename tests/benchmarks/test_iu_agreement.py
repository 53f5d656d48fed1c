"""The rules against the annotators of the IU corpus: a made-up file in its format, and the real one if it is there."""

from pathlib import Path

import pytest
from iu_agreement import ROWS, agreement, main, read_reports

IU_REPORTS = Path(__file__).parents[3] / "shared" / "data" / "iu_reports" / "reports.csv"
HEADER = "uid,findings,impression,mesh_major\n"
MADE_UP = HEADER + (
    "CXR1,Heart size is enlarged. No effusion.,1. Cardiomegaly.,Cardiomegaly/mild;Pulmonary Atelectasis/base/left\n"
    "CXR2,The heart is enlarged.,,normal\n"
    'CXR3,"Possible pneumothorax, small hiatal hernia.",,"Pneumothorax;Hernia, Hiatal/small"\n'
    "CXR4,,,normal\n"
)


@pytest.fixture
def made_up(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text(MADE_UP, encoding="utf-8")
    return path


def test_the_table_counts(made_up):
    reports = read_reports(made_up)
    assert [report.uid for report in reports] == ["CXR1", "CXR2", "CXR3"]
    table = agreement(reports)
    assert list(table) == [row.name for row in ROWS]
    heart = table["cardiomegaly"]
    assert (heart["precision"], heart["recall"], heart["n"]) == (0.5, 1.0, 1) and heart["f1"] == pytest.approx(2 / 3)
    assert (table["pneumothorax"]["f1"], table["pneumothorax"]["f1_uncertain"]) == (0.0, 1.0)
    assert table["hiatal hernia"]["f1"] == 1.0
    assert table["atelectasis"]["recall"] == 0.0


def test_the_command_prints_the_table_and_lists_the_disagreements(made_up, capsys):
    main(["--iu_reports", str(made_up)])
    printed = capsys.readouterr().out
    assert "| hiatal hernia | 1 | 1.000 | 1.000 | 1.000 | 1.000 |" in printed
    assert "cardiomegaly: extra in CXR2: The heart is enlarged. => normal" in printed
    assert "pneumothorax: missed in CXR3" in printed and "hiatal hernia: " not in printed


def test_kaggle_calls_the_terms_mesh(made_up):
    made_up.write_text(MADE_UP.replace("mesh_major", "MeSH"), encoding="utf-8")
    assert read_reports(made_up)[0].heads == {"Cardiomegaly", "Pulmonary Atelectasis"}


def test_a_missing_column_is_named(made_up):
    made_up.write_text(MADE_UP.replace("impression", "conclusion"), encoding="utf-8")
    with pytest.raises(ValueError, match="no column impression; it has uid, findings, conclusion, mesh_major"):
        read_reports(made_up)


@pytest.mark.skipif(not IU_REPORTS.exists(), reason="the IU reports are not there")
def test_the_rules_agree_with_the_annotators():
    table = agreement(read_reports(IU_REPORTS))
    assert table["cardiomegaly"]["f1"] >= 0.92
    assert table["pleural effusion"]["f1"] >= 0.92
    assert sum(row["f1"] for row in table.values()) / len(table) >= 0.85
    assert sum(row["f1_uncertain"] for row in table.values()) / len(table) >= 0.85
