"""How well the rules of `findings.py` agree with the annotators of the IU X-ray corpus, as a table. A command:

    python -m iu_agreement --iu_reports reports.csv

The text is findings + impression. The truth is the annotators' MeSH terms (column `mesh_major`, or `MeSH` in Kaggle's
copy; Demner-Fushman et al. 2016): a finding is there where the head of one of the study's terms is the finding's, as
in "Cardiomegaly/mild". The annotators coded what is there, "atelectasis or scarring" as both, and left out most of
what "may be" there; so only "present" counts here as found. The last column counts "uncertain" too.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_medvlm.language.findings import extract_triplets, label_report
from hf_medvlm.metrics.findings_text import precision_recall_f1

PRESENT, UNCERTAIN = "present", "uncertain"


class Row(NamedTuple):
    """One row of the table: a CheXpert finding or entities of `extract_triplets`, and the MeSH heads it stands for."""

    name: str
    heads: tuple[str, ...]
    finding: str | None = None
    entities: tuple[str, ...] = ()


ROWS = (
    Row("cardiomegaly", ("Cardiomegaly",), "Cardiomegaly"),
    Row("pleural effusion", ("Pleural Effusion",), "Pleural Effusion"),
    Row("pneumothorax", ("Pneumothorax",), "Pneumothorax"),
    Row("atelectasis", ("Pulmonary Atelectasis",), "Atelectasis"),
    # CheXpert's Lung Opacity covers infiltrates and airspace disease too, which the annotators code apart.
    Row("opacity", ("Opacity",), entities=("opacity",)),
    Row("fracture", ("Fractures, Bone",), "Fracture"),
    Row("emphysema", ("Emphysema", "Pulmonary Emphysema"), entities=("emphysema",)),
    Row("nodule or mass", ("Nodule", "Mass"), entities=("nodule", "mass")),
    Row("edema", ("Pulmonary Edema",), "Edema"),
    Row("consolidation", ("Consolidation",), "Consolidation"),
    Row("hiatal hernia", ("Hernia, Hiatal",), entities=("hernia",)),
)


class Report(NamedTuple):
    """A study of the corpus: its id, text, MeSH terms and their heads."""

    uid: str
    text: str
    mesh: str
    heads: frozenset[str]


def read_reports(path: str | Path) -> list[Report]:
    """The reports of `reports.csv` that have any text.

    Raises:
        ValueError: a column is missing; the message names the file and what it has.
    """
    with open(path, encoding="utf-8", newline="") as handle:
        table = csv.DictReader(handle)
        columns = table.fieldnames or []
        terms = next((name for name in ("mesh_major", "MeSH") if name in columns), "mesh_major")
        missing = [name for name in ("uid", "findings", "impression", terms) if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
        reports = []
        for row in table:
            text = "\n\n".join(part for part in (row["findings"], row["impression"]) if part)
            heads = frozenset(term.split("/")[0].strip() for term in row[terms].split(";"))
            if text:
                reports.append(Report(row["uid"], text, row[terms], heads))
        return reports


def states(row: Row, reports: Sequence[Report]) -> list[str]:
    """What the rules say of one row in each report: "present", "uncertain" or "" for neither."""
    found = []
    for report in reports:
        if row.finding:
            state = {1: PRESENT, -1: UNCERTAIN}.get(label_report(report.text)[row.finding], "")
        else:
            said = {state for entity, _, state in extract_triplets(report.text) if entity in row.entities}
            state = PRESENT if PRESENT in said else UNCERTAIN if UNCERTAIN in said else ""
        found.append(state)
    return found


def agreement(reports: Sequence[Report]) -> dict[str, dict[str, float]]:
    """Row name -> precision, recall, f1, n, and f1_uncertain, where "uncertain" counts as present too."""
    table = {}
    for row in ROWS:
        true = np.array([not report.heads.isdisjoint(row.heads) for report in reports], dtype=bool)
        said = np.array(states(row, reports), dtype=str)
        precision, recall, f1 = map(float, precision_recall_f1(said == PRESENT, true))
        generous = float(precision_recall_f1(said != "", true)[2])
        table[row.name] = {"precision": precision, "recall": recall, "f1": f1, "n": int(true.sum())}
        table[row.name]["f1_uncertain"] = generous
    return table


def disagreements(reports: Sequence[Report]) -> Iterator[str]:
    """One line for each report and row where rules and annotators differ."""
    for row in ROWS:
        for report, state in zip(reports, states(row, reports), strict=True):
            true = not report.heads.isdisjoint(row.heads)
            if true != (state == PRESENT):
                how = "missed" if true else "extra"
                yield f"{row.name}: {how} in {report.uid}: {' '.join(report.text.split())} => {report.mesh}"


def render(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table as Markdown, with the mean over its rows."""
    keys = ("precision", "recall", "f1", "f1_uncertain")
    mean = {key: float(np.nanmean([row[key] for row in table.values()])) for key in keys}
    lines = ["| finding | n | precision | recall | F1 | F1, uncertain = present |", "|---|---|---|---|---|---|"]
    for name, row in [*table.items(), ("mean", mean)]:
        lines.append(f"| {name} | {row.get('n', '')} | " + " | ".join(f"{row[key]:.3f}" for key in keys) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, then the disagreements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--iu_reports", required=True, help="CSV with uid, findings, impression and mesh_major (or MeSH)"
    )
    reports = read_reports(parser.parse_args(argv).iu_reports)
    print(f"{len(reports)} reports with text; found = present, there = the head of a MeSH term\n")
    print(render(agreement(reports)), "\n")
    print("\n".join(disagreements(reports)))


if __name__ == "__main__":
    main()
