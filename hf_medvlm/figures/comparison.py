"""Runs side by side on the same studies: which is better, by how much, and on which studies. From saved results alone.

The first run is the one that the others are held against.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import atomic_open, plain_cell
from hf_medvlm.figures.marks import agreement, compare
from hf_medvlm.figures.results import Run, load_run
from hf_medvlm.metrics.comparison import Compared, compare_systems
from hf_medvlm.metrics.facts import HIGHER, NEITHER

TABLE, RESULTS = "studies.csv", "comparison.json"
SHOWN = 3  # study ids in a message
TIE_BREAKS = ("rougeL", "findings_f1", "i2t_rank")


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Args:
        runs, names: the runs, and what each is called: its folder, as short as tells them apart.
        lines: of each run, the N studies in one order.
        metrics: in the order of the first run's results.
        gains: for each further run, by study: how much better it does than the first (share of findings that agree,
            then the study's own scores).
    """

    runs: Sequence[Run]
    names: Sequence[str]
    lines: Sequence[Sequence[Mapping[str, Any]]]
    metrics: Sequence[Compared]
    gains: Sequence[Sequence[tuple[float, float]]]


def compare_runs(folders: Sequence[str | Path], *, resamples: int = 1000) -> Comparison:
    """Hold runs against the first of them.

    Raises:
        ValueError: fewer than two runs, one without predictions or references, runs of other studies or references,
            runs that have no score in common.
    """
    if len({Path(folder).resolve() for folder in folders}) < max(2, len(folders)):
        raise ValueError("name two runs or more, each once")
    runs = [load_run(folder) for folder in folders]
    names = _short_names([run.folder for run in runs])
    lines = [_by_study(run, name) for run, name in zip(runs, names, strict=True)]
    first = lines[0]
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    scored = [name for name in shared if runs[0].fact(name).better != NEITHER]
    if not scored:
        kinds = "; ".join(f"{name}: {_kind(run)}" for name, run in zip(names, runs, strict=True))
        raise ValueError(f"these runs have no score in common, so that nothing can be compared ({kinds})")
    for name, other in zip(names[1:], lines[1:], strict=True):
        _same_studies(names[0], first, name, other, "bleu4" in shared)
    order = list(first)
    systems = [[one[study] for study in order] for one in lines]
    patients = [str(first[study].get("patient_id") or study) for study in order]
    metrics = compare_systems(systems, scored, patients, resamples=resamples)
    if not metrics:
        raise ValueError(
            f"{', '.join(names)}: the saved predictions tell none of their shared scores ({', '.join(scored[:5])}); "
            "score the runs again with this version"
        )
    gains = [[_gain(*pair) for pair in zip(other, systems[0], strict=True)] for other in systems[1:]]
    return Comparison(runs, names, systems, metrics, gains)


def table(compared: Comparison) -> str:
    """The metrics as text: each run's value, and each further run less the first with interval and p-value."""
    rows = [["", *compared.names, *(f"{name} - {compared.names[0]}" for name in compared.names[1:])]]
    for metric in compared.metrics:
        cells = [f"{value:.3f}" for value in metric.values]
        rows.append([metric.name, *cells, *map(in_words, metric.tests)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def in_words(test: Any) -> str:
    """A difference with its interval and p-value."""
    if test.low != test.low:
        return f"{test.difference:+.3f}"
    return f"{test.difference:+.3f} [{test.low:+.3f} to {test.high:+.3f}], p {test.p_value:.3f}"


def better(compared: Comparison, metric: Compared, number: int) -> str:
    """ "better" or "worse" where further run `number` differs: interval without 0, p below 0.05; else ""."""
    test = metric.tests[number]
    if not (test.low > 0 or test.high < 0) or test.p_value >= 0.05:
        return ""
    return "better" if (test.difference > 0) == (compared.runs[0].fact(metric.name).better == HIGHER) else "worse"


def write_tables(compared: Comparison, folder: str | Path) -> None:
    """`comparison.json`, the metrics, and `studies.csv`, a study a line with every run's own scores."""
    folder = Path(folder)
    content = {
        "runs": [str(run.folder) for run in compared.runs],
        "n": len(compared.lines[0]),
        "metrics": {
            metric.name: {
                "values": metric.values,
                "differences": [vars(test) for test in metric.tests],
                "better": compared.runs[0].fact(metric.name).better,
            }
            for metric in compared.metrics
        },
    }
    with atomic_open(folder / RESULTS) as handle:
        json.dump(_without_nan(content), handle, indent=2)
    scores = [
        name for name in compared.lines[0][0].get("scores") or {} if compared.runs[0].fact(name).better != NEITHER
    ]
    header = [
        "study_id",
        "patient_id",
        *(f"{kind}: {name}" for kind in ("agreement", *scores) for name in compared.names),
    ]
    with atomic_open(folder / TABLE) as handle:
        writer = csv.writer(handle)
        writer.writerow(map(plain_cell, header))
        for lines in zip(*compared.lines, strict=True):
            cells = [_agreement(line) for line in lines]
            cells += [(line.get("scores") or {}).get(name) for name in scores for line in lines]
            shown = ["" if cell is None else f"{cell:.4g}" for cell in cells]
            ids = (lines[0]["study_id"], lines[0].get("patient_id", ""))
            writer.writerow([*map(plain_cell, ids), *shown])


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names) and not any(name.isdigit() for name in names):
            return names
    return [str(folder) for folder in folders]


def _by_study(run: Run, name: str) -> dict[str, Mapping[str, Any]]:
    """study id -> line of a run's predictions."""
    if not run.predictions:
        raise ValueError(f"{run.folder} holds no predictions.jsonl; a comparison needs each study's")
    if not any("reference" in line or "findings_reference" in line for line in run.predictions):
        raise ValueError(f"{run.folder} was predicted without references; nothing says what would be right")
    by_study: dict[str, Mapping[str, Any]] = {}
    for line in run.predictions:
        study = str(line.get("study_id"))
        if study in by_study:
            raise ValueError(f"{run.folder}: study {study!r:.100} stands twice in predictions.jsonl")
        by_study[study] = line
    return by_study


def _same_studies(first: str, ours: Mapping[str, Any], second: str, theirs: Mapping[str, Any], texts: bool) -> None:
    """Refuse runs of other studies, or of the same ones with other references."""
    alone = [sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())]
    if any(alone):
        differences = [
            f"{len(ids)} only in {n} ({', '.join(ids[:SHOWN])})"
            for n, ids in zip((first, second), alone, strict=True)
            if ids
        ]
        raise ValueError(
            f"{first} and {second} were scored on other studies: {'; '.join(differences)}; score both on one data "
            "set with `hf-medvlm evaluate`"
        )
    for study, line in ours.items():
        other = theirs[study]
        states = [one.get("findings_reference") or {} for one in (line, other)]
        differ = [n for n in states[0].keys() & states[1].keys() if states[0][n] != states[1][n]]
        if differ or (texts and line.get("reference") != other.get("reference")):
            what = f"of {differ[0]}" if differ and not texts else "texts"
            raise ValueError(
                f"{first} and {second} were held against other reference {what}, in study {study!r:.100} for "
                f"one; score "
                "both with the same --sections and labels"
            )


def _kind(run: Run) -> str:
    return ", ".join(run.groups()[:3]) or "no scores"


def _agreement(line: Mapping[str, Any]) -> float | None:
    """Share of a study's findings on which it agrees with its reference, as the report page shows it."""
    reference, predicted = (line.get(f"findings_{side}") or {} for side in ("reference", "prediction"))
    if not predicted:
        predicted = {name: int(margin > 0) for name, margin in (line.get("zero_shot") or {}).items()}
    asked = bool(line.get("probabilities") or line.get("zero_shot"))
    relations: dict[str, str] = compare(reference, predicted, labelled_only=asked)
    predicted_change, true = (line.get(f"progression_{side}") or {} for side in ("prediction", "reference"))
    relations |= {
        f"{n} over time": "agree" if predicted_change.get(n) == state else "contradict" for n, state in true.items()
    }
    return agreement(relations)


def _gain(line: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[float, float]:
    """How much better a study does than in the first run: by its findings, then by its own score."""
    ours, theirs = _agreement(line), _agreement(first)
    findings = 0.0 if ours is None or theirs is None else ours - theirs
    scores = [one.get("scores") or {} for one in (line, first)]
    for name in TIE_BREAKS:
        if all(isinstance(one.get(name), (int, float)) for one in scores):
            sign = -1 if name.endswith("rank") else 1
            return findings, sign * (scores[0][name] - scores[1][name])
    return findings, 0.0


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
