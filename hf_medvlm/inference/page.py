"""`report.html` of predictions: the studies, what was said of them and where it is, without references."""

from __future__ import annotations

from pathlib import Path

from hf_medvlm.figures.report import write_report

MOST_STUDIES = 2000
"""Beyond so many, a page would be larger than browsers open well."""


def write_page(folder: str | Path) -> Path | None:
    """Write the page of a folder of predictions; None, and a line that says so, where there are too many studies."""
    with open(Path(folder) / "predictions.jsonl", encoding="utf-8") as handle:
        studies = sum(1 for _ in handle)
    if studies > MOST_STUDIES:
        print(f"no report.html for {studies} studies; `hf-medvlm report {folder}` writes it all the same")
        return None
    path = write_report(folder)
    print(f"open {path}")
    return path
