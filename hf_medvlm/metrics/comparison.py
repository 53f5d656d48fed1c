"""Systems side by side on the same studies: each metric, the difference, and whether that could be chance.

Works on the lines of `predictions.jsonl`; knows no run and no model. Patients are drawn and swapped, never studies.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_medvlm.metrics.audit import audit
from hf_medvlm.metrics.findings import finding_scores, label_matrix
from hf_medvlm.metrics.findings_text import findings_f1
from hf_medvlm.metrics.intervals import (
    PairedTest,
    Statistic,
    mean_columns,
    paired_rows,
    paired_test,
    ratio_of_sums,
)
from hf_medvlm.metrics.text import measure

Lines = Sequence[Mapping[str, Any]]
WRITES = "bleu4"
"""A score that every system that writes has; its texts tell all of `measure`, the findings F1 and the audit."""
AREAS = {"mean_auc": "probabilities", "zero_shot_auc": "zero_shot"}
"""Score -> what of a line holds the evidence for each finding."""
RECALLS = {f"{way}_recall@{k}": (f"{way}_rank", k) for way in ("i2t", "t2i") for k in (1, 5, 10)}


@dataclass(frozen=True)
class Summands:
    """One metric as a function of sums over studies: (N, K) columns, and (R, K) sums -> (R,)."""

    columns: np.ndarray
    statistic: Statistic

    @property
    def value(self) -> float:
        return float(self.statistic(self.columns.sum(axis=0, keepdims=True))[0])


@dataclass(frozen=True)
class Compared:
    """One metric of several systems; `tests` hold each further system against the first, which is subtracted."""

    name: str
    values: list[float]
    tests: list[PairedTest]


def summands(lines: Lines, names: Collection[str]) -> dict[str, Summands]:
    """What each study adds to each metric of `names` that is a function of sums over studies."""
    by_metric: dict[str, Summands] = {}
    if WRITES in names:
        texts, references = ([str(line.get(side) or "") for line in lines] for side in ("prediction", "reference"))
        measured = measure(texts, references).items()
        by_metric |= {name: Summands(one.summands, one.statistic) for name, one in measured}
        by_metric["findings_f1_micro"] = Summands(findings_f1(texts, references).sums, ratio_of_sums)
        audited = audit(texts, references, saw_prior=[bool(line.get("saw_prior")) for line in lines], resamples=0)
        by_metric |= {name: Summands(audited.sums[:, k], ratio_of_sums) for k, name in enumerate(audited.metrics)}
    scores = [line.get("scores") or {} for line in lines]
    shared = {name for name, value in scores[0].items() if all(_is_number(one.get(name)) for one in scores)}
    for name, (rank, k) in RECALLS.items():
        if rank in shared:
            by_metric[name] = Summands(mean_columns([float(one[rank] <= k) for one in scores]), ratio_of_sums)
    for name in shared - by_metric.keys():
        by_metric[name] = Summands(mean_columns([one[name] for one in scores]), ratio_of_sums)
    if "progression_accuracy" in names:
        rows = [_progression(line) for line in lines]
        by_metric["progression_accuracy"] = Summands(np.array(rows, dtype=float), ratio_of_sums)
    return {name: one for name, one in by_metric.items() if name in names}


def compare_systems(
    systems: Sequence[Lines], names: Collection[str], patients: Sequence[Hashable], *, resamples: int = 1000
) -> list[Compared]:
    """Every metric of `names` that the lines tell, of each system, and each further system less the first.

    Args:
        systems: two or more times the lines of the same N studies, in one order.
        names: metrics that all of them were scored by. patients: N, of each study.
    """
    measured = [summands(lines, names) for lines in systems]
    compared = []
    for name in names:
        if all(name in one for one in measured):
            first, statistic = measured[0][name].columns, measured[0][name].statistic
            tests = [
                paired_test(one[name].columns, first, patients, statistic, resamples=resamples) for one in measured[1:]
            ]
            compared.append(Compared(name, [one[name].value for one in measured], tests))
        elif name in AREAS and all(line.get(AREAS[name]) for lines in systems for line in lines):
            compared.append(_areas(name, systems, patients, resamples))
    return compared


def _areas(name: str, systems: Sequence[Lines], patients: Sequence[Hashable], resamples: int) -> Compared:
    """The mean AUC over the findings that every system was asked for."""
    every = [[line[AREAS[name]] for line in lines] for lines in systems]
    findings = [finding for finding in every[0][0] if all(finding in row for rows in every for row in rows)]
    labels = label_matrix([line.get("findings_reference") or {} for line in systems[0]], findings)
    evidence = [np.array([[row[finding] for finding in findings] for row in rows], dtype=float) for rows in every]

    def area(values: np.ndarray, rows: np.ndarray) -> float:
        return finding_scores(values[rows], labels[rows], findings)["mean_auc"]

    everyone = np.arange(len(labels))
    tests = [paired_rows(area, one, evidence[0], patients, resamples=resamples) for one in evidence[1:]]
    return Compared(name, [area(one, everyone) for one in evidence], tests)


def _progression(line: Mapping[str, Any]) -> tuple[int, int]:
    """(right answers, questions) of one study."""
    predicted, true = (line.get(f"progression_{side}") or {} for side in ("prediction", "reference"))
    return sum(predicted.get(name) == state for name, state in true.items()), len(true)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
