"""What a run left in its folder, read back for drawing: scores, history, predictions. Draws nothing, trains nothing.

Section 6 of the design says what the files hold. Each part may be missing; what is there is used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import load_json, open_text, read_json
from hf_medvlm.data.secrets import masked_values
from hf_medvlm.figures.checked import INFO, PREDICTION, RESULTS, STATE, Kind
from hf_medvlm.metrics.facts import FRACTION, NEITHER, Fact

UNKNOWN = Fact("Other", "", NEITHER, "")
AGREEMENT = Fact("Findings", "share of the findings that both sides speak of on which they agree")
"""Made by the report page of each study's findings, and no score of the evaluation."""


@dataclass(frozen=True)
class Run:
    """One output folder.

    Args:
        split: whose scores `metrics` are: "test", or "validate" where no test was scored.
        metrics, baselines, intervals, n, figures: as in `test_results.json`; undefined scores are NaN.
        facts: name -> group, direction, unit and protocol of a score, as the evaluation stated them.
        history: the trainer's log, one entry a logging step, each with `step`.
        predictions: one object a study.
        info: `run.json`: versions, command, data, split sizes, seed.
    """

    folder: Path
    split: str = "test"
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    n: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def image_folder(self) -> Path | None:
        """Where the predictions' image paths start, or None where the run did not say."""
        named = self.info.get("image_folder")
        return Path(named) if named else None

    def fact(self, name: str) -> Fact:
        """What is known of the score called `name`; nothing is guessed where the run states nothing."""
        return AGREEMENT if name == "agreement" else self.facts.get(name, UNKNOWN)

    def groups(self) -> list[str]:
        """Titles of the groups of scores, in the order in which the evaluation gave them."""
        return list(dict.fromkeys(self.fact(name).group for name in self.metrics))

    def in_unit_range(self, name: str) -> bool:
        """Whether the score lives on [0, 1], and may be drawn on one axis with its like."""
        return self.fact(name).unit == FRACTION

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one logged quantity, entries without a finite number left out."""
        points = [(e["step"], e[key]) for e in self.history if is_number(e.get("step")) and is_number(e.get(key))]
        return [x for x, _ in points], [y for _, y in points]

    def logged(self) -> list[str]:
        """Names of all logged quantities, in the order of their first appearance."""
        return list(dict.fromkeys(key for entry in self.history for key in entry if key not in ("step", "epoch")))


def is_number(value: object) -> bool:
    """True for a finite int or float that is no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_facts(results: Mapping[str, Any]) -> dict[str, Fact]:
    """Name -> fact of every score of a results file, from its `facts` and its `protocol`."""

    def mapping(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    stated, protocol = mapping(results.get("facts")), mapping(results.get("protocol"))
    names = dict.fromkeys([*stated, *protocol])
    return {name: Fact.from_dict(mapping(stated.get(name)), str(protocol.get(name, ""))) for name in names}


def load_run(folder: str | Path) -> Run:
    """Read what is there: test_results.json (or eval_results.json), trainer_state.json, predictions.jsonl, run.json.

    Raises:
        ValueError: the folder is none, holds nothing of a run, or a file in it is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the --output_dir of a run")
    test, validation = (read_object(folder / f"{split}_results.json", RESULTS) for split in ("test", "eval"))
    state, info = read_object(folder / "trainer_state.json", STATE), read_object(folder / "run.json", INFO)
    predictions = _read_lines(folder / "predictions.jsonl")
    if not (test or validation or state or info or predictions):
        raise ValueError(
            f"{folder} holds no run: none of test_results.json, eval_results.json, trainer_state.json, run.json and "
            "predictions.jsonl is there; name the --output_dir of a run that has ended"
        )
    results = test or validation
    return Run(
        folder=folder,
        split="test" if test or not validation else "validate",
        metrics=_numbers(results.get("metrics")),
        baselines={name: _numbers(values) for name, values in (results.get("baselines") or {}).items()},
        intervals={k: tuple(v) for k, v in (results.get("intervals") or {}).items() if v and all(map(is_number, v))},
        facts=read_facts(results),
        n=results.get("n"),
        figures=results.get("figures") or {},
        history=[dict(entry) for entry in state.get("log_history") or [] if isinstance(entry, Mapping)],
        predictions=predictions,
        info=masked_values(info),
    )


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Scores by name; null stands for undefined, and what is no number at all is left out."""
    kept = {k: math.nan if v is None else v for k, v in (values or {}).items()}
    return {k: float(v) for k, v in kept.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def read_object(path: Path, kind: Kind) -> dict[str, Any]:
    """The JSON object in `path`, each of its values of the kind that it must be; empty where there is no such file.

    Raises:
        ValueError: no JSON, no object, or a value of another kind; the message names the file and the place in it.
    """
    if not os.path.lexists(path):
        return {}
    return kind(_without_nan(load_json(path, dict, "run the evaluation again")), f"{path}:")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one a line; empty where there is no such file."""
    if not os.path.lexists(path):
        return []
    with open_text(path) as handle:
        lines = [(number, line) for number, line in enumerate(handle, start=1) if line.strip()]
    return [PREDICTION(_without_nan(read_json(line, path, number)), f"{path}:{number}:") for number, line in lines]


def _without_nan(value: Any) -> Any:
    """NaN and Infinity, which Python writes and no browser reads, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return [_without_nan(part) for part in value] if isinstance(value, list) else value
