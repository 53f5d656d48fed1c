"""What the files of a run may hold, checked when they are read: a run's folder travels, and its files are edited.

A kind is a function of a value and of its place. It returns the value, or raises `ValueError` with what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hf_medvlm.errors import clipped

Kind = Callable[[Any, str], Any]


def _wrong(value: Any, place: str, wanted: str) -> ValueError:
    return ValueError(f"{place} must be {wanted}, found {clipped(value)}; run the evaluation again")


def number(value: Any, place: str) -> Any:
    """A number or null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300):
        if not (isinstance(value, float) and not math.isfinite(value)):
            raise _wrong(value, place, "a number or null")
    return value


def count(value: Any, place: str) -> Any:
    """A whole number or null."""
    if value is not None and (type(value) is not int or not 0 <= value < 2**53):
        raise _wrong(value, place, "a whole number or null")
    return value


def text(value: Any, place: str) -> Any:
    """A text, a number or null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise _wrong(value, place, "a text")
    return value


def state(value: Any, place: str) -> Any:
    """1, 0, -1 or null."""
    if value is not None and (isinstance(value, (bool, str)) or value not in (-1, 0, 1)):
        raise _wrong(value, place, "1, 0, -1 or null")
    return value


def anything(value: Any, place: str) -> Any:
    """What is only shown."""
    return value


def many(kind: Kind, length: int | None = None) -> Kind:
    """A list of one kind, or null."""

    def check(value: Any, place: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, list) or length not in (None, len(value)):
            raise _wrong(value, place, "a list" if length is None else f"a list of {length}")
        return [kind(part, f"{place}[{number}]") for number, part in enumerate(value)]

    return check


def named(kind: Kind) -> Kind:
    """An object of one kind, or null."""

    def check(value: Any, place: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise _wrong(value, place, "an object")
        return {name: kind(part, f"{place} {name!r:.60}") for name, part in value.items()}

    return check


def record(needed: str = "", /, **kinds: Kind) -> Kind:
    """An object whose keys have kinds of their own; other keys are kept as they are.

    Args:
        needed: keys that must be there, divided by blanks.
    """

    def check(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(value, place, "an object")
        missing = [name for name in needed.split() if value.get(name) is None]
        if missing:
            raise ValueError(f"{place} has no {', '.join(missing)}; run the evaluation again")
        return {n: kinds[n](part, f"{place} {n!r}") if n in kinds else part for n, part in value.items()}

    return check


def either(*kinds: Kind) -> Kind:
    """The first kind that fits; the last one says what is wrong."""

    def check(value: Any, place: str) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind(value, place)
            except ValueError:
                continue
        return kinds[-1](value, place)

    return check


def _curve(value: Any, place: str) -> Any:
    value = record(fpr=numbers, tpr=numbers, auc=number)(value, place)
    for x, y in (("fpr", "tpr"), ("false_positive_rate", "true_positive_rate")):
        if len(numbers(value.get(x), place) or []) != len(numbers(value.get(y), place) or []):
            raise ValueError(f"{place}: {x} and {y} differ in length; run the evaluation again")
    return value


def _named_curve(value: Any, place: str) -> Any:
    value = record("x y x_label y_label", x=numbers, y=named(numbers), x_label=text, y_label=text)(value, place)
    if any(len(line or []) != len(value["x"]) for line in value["y"].values()):
        raise ValueError(f"{place}: x and y differ in length; run the evaluation again")
    return value


def _grid(value: Any, place: str) -> Any:
    rows = many(many(number))(value, place)
    if not rows or not rows[0] or any(row is None or len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"{place} must be a map: rows of numbers, all of one length; run the evaluation again")
    return rows


def _matrix(value: Any, place: str) -> Any:
    value = record("labels matrix", labels=many(text), matrix=many(many(count)))(value, place)
    if any(row is None or len(row) != len(value["labels"]) for row in value["matrix"]):
        raise ValueError(f"{place}: the matrix does not fit its labels; run the evaluation again")
    if len(value["matrix"]) != len(value["labels"]):
        raise ValueError(f"{place}: the matrix does not fit its labels; run the evaluation again")
    return value


numbers = many(number)
_counts = record("tp fp fn tn", tp=count, fp=count, fn=count, tn=count)
_error = record(kind=text, finding=text)
_cell = record("rate errors of", rate=number, errors=count, of=count, low=number, high=number)
_box = record("xywh", image=count, xywh=many(number, 4), finding=text, phrase=text)

FIGURES = record(
    roc=named(_curve),
    confusion=either(_matrix, named(either(_matrix, _counts))),
    per_finding=named(named(number)),
    curves=named(_named_curve),
    audit=named(named(either(_cell, record(rate=number)))),
    missing_metrics=named(text),
)
RESULTS = record(
    metrics=named(number),
    baselines=named(named(number)),
    intervals=named(many(number, 2)),
    protocol=named(text),
    facts=named(named(text)),
    n=count,
    figures=FIGURES,
)
PREDICTION = record(
    study_id=text,
    patient_id=text,
    images=many(either(text, record("path", path=text, view=text))),
    view=text,
    reference=text,
    prediction=text,
    question=text,
    scores=named(number),
    findings_reference=named(state),
    findings_prediction=named(state),
    zero_shot=named(number),
    probabilities=named(number),
    progression_reference=named(text),
    progression_prediction=named(text),
    audit=many(_error),
    boxes=many(_box),
    maps=named(_grid),
    map_image=count,
)
STATE = record(log_history=many(either(record(step=number), anything)))
INFO = record(
    recipe=text,
    hf_medvlm=text,
    command=text,
    model_class=text,
    dataset=text,
    image_folder=text,
    sources=many(text),
    licences=many(text),
    split_sizes=named(count),
    rejected=named(count),
    versions=named(text),
    patients=count,
    parameters=count,
    trainable_parameters=count,
    steps=count,
    studies_without_licence=count,
    tokenizer_words=text,
    data_hash=text,
)
