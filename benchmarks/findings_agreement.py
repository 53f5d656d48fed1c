"""How well the rules of `language/` read findings, beside another commit's: precision, recall and F1 of each finding.

    python benchmarks/findings_agreement.py --phrases tests/language/phrases_own.json --base HEAD~1
    python benchmarks/findings_agreement.py --iu_reports reports.csv --base ecc0309
    python benchmarks/findings_agreement.py --labels mimic-cxr-2.0.0-chexpert.csv.gz --reports mimic-cxr-reports.zip

Phrases: a JSON list of `{"text", "states": {finding: [accepted states]}}` with 1, 0, -1 and null for not mentioned.
IU X-ray: findings + impression against the annotators' MeSH terms (column `mesh_major`, or `MeSH` in Kaggle's copy;
Demner-Fushman et al. 2016), where the head of a term is the finding's, as in "Cardiomegaly/mild". They coded what is
there, and left out most of what "may be" there.
Labels: a CSV with CheXpert's columns (1, 0, -1, empty), with the text in a column of its own or by `study_id` in
MIMIC's reports (ZIP or folder). Only ids of these are printed, no text.

"Found" is the state present; the last column counts uncertain too. With `--base` both commits read the same texts in
turn, each in a process of its own; what was won and lost is listed, and the speeds stand beside each other.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_medvlm.data.sources.mimic_reports import index_reports, read_reports
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.metrics.findings_text import precision_recall_f1

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3  # each commit reads everything this often; the fastest counts
LABELLED_SECTIONS = ("impression", "findings", "last_paragraph", "comparison")
"""MIMIC-CXR's labellers read the first of these that a report has (MIT-LCP/mimic-cxr, `create_section_files.py`)."""
TEXT_COLUMNS = ("report", "text", "Report Impression", "Reports")
State = int | None

# Runs under either commit, so it may use only what both have.
READER = """
import json, os, sys, time
# By folder, not by trying: an editable install answers for a module that this commit has not.
if os.path.isdir("hf_medvlm/language"):
    from hf_medvlm.language import findings
else:
    from hf_medvlm.data import findings
if not os.path.samefile(findings.__file__[: findings.__file__.rindex("hf_medvlm")], "."):
    sys.exit(f"it is read from {findings.__file__}")
extract_triplets, label_report = findings.extract_triplets, findings.label_report
texts = json.load(sys.stdin)
start = time.process_time()
labels = [label_report(text) for text in texts]
seconds = time.process_time() - start
entities = [[[entity, state] for entity, _, state in extract_triplets(text)] for text in texts]
json.dump({"labels": labels, "entities": entities, "seconds": seconds}, sys.stdout)
"""


class Row(NamedTuple):
    """One line of the table: a CheXpert finding, or MedKLIP entities, and the MeSH heads it stands for."""

    name: str
    heads: tuple[str, ...] = ()
    finding: str | None = None
    entities: tuple[str, ...] = ()


IU_ROWS = (
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
FINDING_ROWS = tuple(Row(name, finding=name) for name in CHEXPERT_14)


class Case(NamedTuple):
    """One text; `accepted` holds the states that are right, for the rows of which the truth is known."""

    name: str
    text: str
    accepted: dict[str, tuple[State, ...]]
    shown: str  # what a list of differences prints of it


class Reading(NamedTuple):
    """What one commit reads in all texts."""

    labels: list[dict[str, State]]
    entities: list[list[tuple[str, str]]]
    seconds: float

    def states(self, row: Row) -> list[State]:
        if row.finding:
            return [labels[row.finding] for labels in self.labels]
        codes = [{state for entity, state in named if entity in row.entities} for named in self.entities]
        order = (("present", 1), ("uncertain", -1), ("absent", 0))
        return [next((code for word, code in order if word in states), None) for states in codes]


def read_phrases(paths: Sequence[str | Path]) -> list[Case]:
    """The phrases of some JSON files."""
    return [
        Case(phrase["text"], phrase["text"], {k: tuple(v) for k, v in phrase["states"].items()}, repr(phrase["text"]))
        for path in paths
        for phrase in json.loads(Path(path).read_text(encoding="utf-8"))
    ]


def _table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        return list(rows.fieldnames or []), list(rows)


def read_iu(path: str | Path) -> list[Case]:
    """The reports of IU's `reports.csv` that have any text.

    Raises:
        ValueError: a column is missing; the message names the file and what it has.
    """
    columns, rows = _table(path)
    terms = next((name for name in ("mesh_major", "MeSH") if name in columns), "mesh_major")
    missing = [name for name in ("uid", "findings", "impression", terms) if name not in columns]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    cases = []
    for row in rows:
        text = "\n\n".join(part for part in (row["findings"], row["impression"]) if part)
        heads = {term.split("/")[0].strip() for term in row[terms].split(";")}
        accepted: dict[str, tuple[State, ...]] = {
            r.name: (0, -1, None) if heads.isdisjoint(r.heads) else (1,) for r in IU_ROWS
        }
        if text:
            cases.append(Case(row["uid"], text, accepted, f"{row['uid']}: {' '.join(text.split())} => {row[terms]}"))
    return cases


def read_labelled(labels: str | Path, reports: str | Path | None) -> list[Case]:
    """The studies of a labelled CSV that have a report.

    Raises:
        ValueError: no finding's column, or no way to the texts; the message names the file and what it has.
    """
    columns, rows = _table(labels)
    findings = [name for name in CHEXPERT_14 if name in columns]
    if not findings:
        raise ValueError(f"{labels} has no column of a CheXpert finding; it has {', '.join(columns) or 'none'}")
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    texts: dict[str, str] = {}
    if reports is not None:
        index = index_reports(Path(reports))
        asked = [row["study_id"].removeprefix("s") for row in rows if row.get("study_id")]
        for report in read_reports(Path(reports), index, [study for study in asked if study in index]):
            sections = [getattr(report, name) for name in LABELLED_SECTIONS]
            texts[report.study_id] = next(filter(None, sections), "")
    elif column is None:
        raise ValueError(f"{labels} has no column {' or '.join(TEXT_COLUMNS)}; name its --reports")
    cases = []
    for number, row in enumerate(rows, start=2):
        study = row.get("study_id", "").removeprefix("s") or f"line {number}"
        text = texts.get(study, "") if reports is not None else row[column or ""]
        states = {name: int(float(row[name])) if row[name].strip() else None for name in findings}
        if text.strip():
            cases.append(Case(study, text, {name: (state,) for name, state in states.items()}, study))
    return cases


def read_all(texts: Sequence[str], root: Path) -> Reading:
    """What the code under `root` reads in the texts, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(list(texts)),
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,  # which Python looks in first
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"the code under {root} does not read these texts: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return Reading(answer["labels"], [[(e, s) for e, s in named] for named in answer["entities"]], answer["seconds"])


def read_with(texts: Sequence[str], roots: Sequence[Path]) -> list[Reading]:
    """A reading for each root; they take turns, and each keeps its fastest time."""
    rounds = [[read_all(texts, root) for root in roots] for _ in range(ROUNDS if len(roots) > 1 else 1)]
    return [min(readings, key=lambda reading: reading.seconds) for readings in zip(*rounds, strict=True)]


def score(row: Row, cases: Sequence[Case], reading: Reading) -> dict[str, float]:
    """Precision, recall, f1 (present counts as found), f1_uncertain (uncertain too), right and n of one row.

    Where several states are right, the one that was read counts as the truth, and in f1_uncertain the first of them.
    """
    read = reading.states(row)
    judged = [
        (case.accepted[row.name], state) for case, state in zip(cases, read, strict=True) if row.name in case.accepted
    ]
    pairs = [(state if state in right else right[0], state) for right, state in judged]

    def scores(truths: Sequence[State], positive: tuple[int, ...]) -> list[float]:
        true = np.array([truth in positive for truth in truths], dtype=bool)
        predicted = np.array([state in positive for _, state in judged], dtype=bool)
        return [float(value) for value in precision_recall_f1(predicted, true)]

    strict = scores([truth for truth, _ in pairs], (1,))
    return {
        "n": sum(truth == 1 for truth, _ in pairs),
        "right": sum(truth == state for truth, state in pairs) / len(pairs) if pairs else float("nan"),
        **dict(zip(("precision", "recall", "f1"), strict, strict=True)),
        "f1_uncertain": scores([right[0] for right, _ in judged], (1, -1))[2],
    }


def agreement(cases: Sequence[Case], reading: Reading, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Row name -> what `score` says of it, for the rows of which any truth is known."""
    judged = {name for case in cases for name in case.accepted}
    return {row.name: score(row, cases, reading) for row in rows if row.name in judged}


def wrong_rows(case: Case, number: int, states: Mapping[str, Sequence[State]]) -> dict[str, State]:
    """Row name -> state, where the state read in a text is none of those that are right."""
    return {name: states[name][number] for name, right in case.accepted.items() if states[name][number] not in right}


def render(table: Mapping[str, Mapping[str, float]], base: Mapping[str, Mapping[str, float]] | None) -> str:
    """The table as Markdown, with the mean over its rows, and the base's F1 beside it."""
    keys = ("precision", "recall", "f1", "f1_uncertain")
    heads = ["finding", "n", "precision", "recall", "F1", "F1, uncertain = present"]
    heads += ["F1 of the base", "difference"] if base else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in [*table.items(), ("mean", _mean(table, keys))]:
        cells = [name, f"{row['n']:.0f}" if "n" in row else "", *(f"{row[key]:.3f}" for key in keys)]
        if base:
            before = base[name]["f1"] if name in base else _mean(base, keys)["f1"]
            cells += [f"{before:.3f}", f"{row['f1'] - before:+.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(table: Mapping[str, Mapping[str, float]], keys: Sequence[str]) -> dict[str, float]:
    values = {key: [row[key] for row in table.values() if not np.isnan(row[key])] for key in keys}
    return {key: float(np.mean(scores)) if scores else float("nan") for key, scores in values.items()}


def report(title: str, cases: Sequence[Case], rows: Sequence[Row], roots: Sequence[Path], most: int) -> None:
    """Print the table of one set of texts, and where the rules are wrong, or what they won and lost."""
    readings = read_with([case.text for case in cases], roots)
    tables = [agreement(cases, reading, rows) for reading in readings]
    states = [{row.name: reading.states(row) for row in rows} for reading in readings]
    wrong = [[wrong_rows(case, number, one) for number, case in enumerate(cases)] for one in states]
    rights = " (base: ".join(f"{sum(not w for w in one)}" for one in wrong)
    speeds = " (base: ".join(f"{len(cases) / reading.seconds:,.0f}" for reading in readings)
    close = ")" if len(roots) > 1 else ""
    print(f"## {title}\n\n{len(cases)} texts, wholly right: {rights}{close}; read in a second: {speeds}{close}\n")
    print(render(tables[0], tables[1] if len(roots) > 1 else None), "\n")
    if len(roots) == 1:
        differing = [(case.shown, one) for case, one in zip(cases, wrong[0], strict=True) if one]
        lists = {"wrong": [f"{shown} read as {one}" for shown, one in differing]}
    else:
        lists = {"won": [], "lost": []}
        for number, case in enumerate(cases):
            for name in case.accepted:
                now, before = name in wrong[0][number], name in wrong[1][number]
                if now != before:
                    line = f"{name}: {states[1][name][number]} -> {states[0][name][number]} in {case.shown}"
                    lists["lost" if now else "won"].append(line)
    for name, entries in lists.items():
        left = f"\n- and {len(entries) - most} more (--most)" if len(entries) > most else ""
        print(f"{name}: {len(entries)}\n" + "\n".join(f"- {entry}" for entry in entries[:most]) + left, "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each set of texts that was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", nargs="+", default=[], help="JSON files of judged phrases")
    parser.add_argument("--iu_reports", help="IU's CSV with uid, findings, impression and mesh_major (or MeSH)")
    parser.add_argument("--labels", help="a CSV (or .csv.gz) with CheXpert's columns")
    parser.add_argument("--reports", help="MIMIC-CXR's reports for --labels: the ZIP, or the folder of p10 to p19")
    parser.add_argument("--base", metavar="REV", help="a commit of this repository to compare with")
    parser.add_argument("--most", type=int, default=200, help="entries printed of each list (default: %(default)s)")
    options = parser.parse_args(argv)
    sets: list[tuple[str, list[Case], Sequence[Row]]] = []
    if options.phrases:
        sets.append(("Phrases", read_phrases(options.phrases), FINDING_ROWS))
    if options.iu_reports:
        sets.append(("IU X-ray's MeSH terms", read_iu(options.iu_reports), IU_ROWS))
    if options.labels:
        sets.append((Path(options.labels).name, read_labelled(options.labels, options.reports), FINDING_ROWS))
    if not sets:
        parser.error("name at least one of --phrases, --iu_reports and --labels")
    with tempfile.TemporaryDirectory() as folder:
        roots = [ROOT]
        if options.base:
            tree = Path(folder) / "base"
            git = ["git", "-C", str(ROOT), "worktree"]
            added = subprocess.run([*git, "add", "--detach", str(tree), options.base], capture_output=True, text=True)
            if added.returncode:
                parser.error(f"--base {options.base}: {added.stderr.strip()}")
            roots.append(tree)
        try:
            for title, cases, rows in sets:
                report(title, cases, rows, roots, options.most)
        finally:
            if options.base:
                subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"findings_agreement: {error}")
