"""What a run left in its folder, read back for drawing: scores, history, predictions. Draws nothing, trains nothing.

Section 6 of the design says what the files hold. Each part may be missing; what is there is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        points = [(e["step"], e[key]) for e in self.history if "step" in e and is_number(e.get(key))]
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
    test, validation = _read_object(folder / "test_results.json"), _read_object(folder / "eval_results.json")
    state, info = _read_object(folder / "trainer_state.json"), _read_object(folder / "run.json")
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
        info=info,
    )


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Scores by name; null stands for undefined, and what is no number at all is left out."""
    kept = {k: math.nan if v is None else v for k, v in (values or {}).items()}
    return {k: float(v) for k, v in kept.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _decode(text: str) -> Any:
    """JSON as Python writes it: its NaN and Infinity, which no browser reads, become None."""
    return json.loads(text, parse_constant=lambda constant: None)


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = _decode(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}; run the evaluation again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected one JSON object, found {type(value).__name__}; run the evaluation again")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one a line; empty where there is no such file."""
    if not path.is_file():
        return []
    records = []
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                record = _decode(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error.msg}; run the evaluation again") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: expected an object, found {type(record).__name__}")
            records.append(record)
    return records
