"""The files of predictions: their lines checked as they are read, the table that is made of them, ReXrank's JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_medvlm.checked import Kind, count, many, name, named, number, record, state, words
from hf_medvlm.data.files import atomic_open, open_text, plain_cell, read_json, write_json

PREDICTIONS, TABLE = "predictions.jsonl", "predictions.csv"
REJECTION = record("file reason", file=words, line=count, study_id=words, reason=words, detail=words)
"""A line of `rejected.jsonl`."""
_UNREAD = record("rejected", rejected=words)
_TOLD = record(
    "study_id patient_id",
    study_id=name,
    patient_id=name,
    images=many(record("path", path=name, view=words)),
    map_image=count,
    question=words,
    prediction=words,
    probabilities=named(number),
    findings_prediction=named(state),
    progression_prediction=named(words),
)


def told(value: Any, place: str) -> Any:
    """A line of `predictions.jsonl`, or of a part: what was said of a study, or why it could not be read."""
    if isinstance(value, Mapping) and "rejected" in value:
        return _UNREAD(value, place)
    line = _TOLD(value, place)
    line["images"] = line.get("images") or []
    if line["images"] and not (line.get("map_image") or 0) < len(line["images"]):
        raise ValueError(f"{place}: map_image is none of the study's images")
    return line


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, one by one; none where it is not there."""
    if path.exists():
        with open_text(path) as handle:
            yield from handle


def read_lines(path: Path, kind: Kind = told) -> Iterator[dict[str, Any]]:
    """The objects of a file that was written here, line by line; none where it is not there.

    Raises:
        ValueError: a line that is no such object; the message names it.
    """
    for at, text in enumerate(lines(path), start=1):
        yield kind(read_json(text, path, at), f"{path}:{at}:")


def write_rexrank(records: Mapping[str, Any], folder: Path, out: Path) -> int:
    """ReXrank's file with a `model_prediction` in each record, empty for studies that could not be read.

    Returns:
        How many of them are empty.
    """
    texts = {line["study_id"]: line.get("prediction", "") for line in read_lines(folder / PREDICTIONS)}
    write_json(out, {name: record | {"model_prediction": texts.get(name, "")} for name, record in records.items()})
    return sum(name not in texts for name in records)


def write_table(folder: Path) -> None:
    """`predictions.csv`: ids, image, text, and a column for each finding's probability (or state, of a text)."""
    columns: dict[str, None] = dict.fromkeys(("study_id", "patient_id", "image"))
    for line in read_lines(folder / PREDICTIONS):
        columns |= dict.fromkeys(_cells(line))
    with atomic_open(folder / TABLE) as handle:
        writer = csv.DictWriter(handle, list(columns), restval="")
        writer.writerow({name: plain_cell(name) for name in columns})
        for line in read_lines(folder / PREDICTIONS):
            writer.writerow({name: plain_cell(cell) for name, cell in _cells(line).items()})


def _cells(line: Mapping[str, Any]) -> dict[str, Any]:
    images = line["images"]
    cells = {"study_id": line["study_id"], "patient_id": line["patient_id"]}
    cells["image"] = images[line.get("map_image") or 0]["path"] if images else ""
    cells |= {name: line[name] for name in ("question", "prediction", "cut_off") if name in line}
    cells |= {f"p({name})": "" if p is None else f"{p:.6g}" for name, p in (line.get("probabilities") or {}).items()}
    states = line.get("findings_prediction") or {}
    cells |= {name: "" if state is None else state for name, state in states.items()}
    return cells | {f"{name} over time": state for name, state in (line.get("progression_prediction") or {}).items()}
