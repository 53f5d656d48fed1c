"""What the files of a run may hold, of which the figures, the page and the card are made."""

from __future__ import annotations

from typing import Any

from hf_medvlm.checked import Kind, count, either, many, named, number, record, state, string, text, total, words

__all__ = ["INFO", "PREDICTION", "RESULTS", "STATE", "Kind"]

numbers = many(number)
_rate = record("errors of", rate=number, errors=count, of=count, low=number, high=number)


def _cell(value: Any, place: str) -> Any:
    return {"rate": None} | _rate(value, place)


def _curve(value: Any, place: str) -> Any:
    value = record(fpr=numbers, tpr=numbers, auc=number)(value, place)
    for x, y in (("fpr", "tpr"), ("false_positive_rate", "true_positive_rate")):
        if len(numbers(value.get(x), place) or []) != len(numbers(value.get(y), place) or []):
            raise ValueError(f"{place}: {x} and {y} differ in length; run the evaluation again")
    return value


def _named_curve(value: Any, place: str) -> Any:
    value = record("x y x_label y_label", x=numbers, y=named(numbers), x_label=words, y_label=words)(value, place)
    if any(len(line or []) != len(value["x"]) for line in value["y"].values()):
        raise ValueError(f"{place}: x and y differ in length; run the evaluation again")
    return value


def _grid(value: Any, place: str) -> Any:
    rows = many(many(number))(value, place)
    if not rows or not rows[0] or any(row is None or len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"{place} must be a map: rows of numbers, all of one length; run the evaluation again")
    return rows


def _matrix(value: Any, place: str) -> Any:
    value = record("labels matrix", labels=many(words), matrix=many(many(count)))(value, place)
    labels = len(value["labels"])
    if [len(row or ()) for row in value["matrix"]] != [labels] * labels:
        raise ValueError(f"{place}: the matrix does not fit its labels; run the evaluation again")
    return value


_counts = record("tp fp fn tn", tp=total, fp=total, fn=total, tn=total)
_error = record(kind=words, finding=words)
_box = record("xywh", image=count, xywh=many(number, 4), finding=words, phrase=words)

FIGURES = record(
    roc=named(_curve),
    confusion=either(_matrix, named(either(_matrix, _counts))),
    per_finding=named(named(number)),
    curves=named(_named_curve),
    audit=named(named(_cell)),
    missing_metrics=named(words),
    without_maps=words,
)
RESULTS = record(
    metrics=named(number),
    baselines=named(named(number)),
    intervals=named(many(number, 2)),
    protocol=named(words),
    facts=named(named(text)),
    n=count,
    figures=FIGURES,
)
PREDICTION = record(
    study_id=text,
    patient_id=text,
    images=many(either(string, record("path", path=words, view=words))),
    view=words,
    reference=words,
    prediction=words,
    question=words,
    scores=named(number),
    findings_reference=named(state),
    findings_prediction=named(state),
    zero_shot=named(number),
    probabilities=named(number),
    progression_reference=named(words),
    progression_prediction=named(words),
    audit=many(_error),
    boxes=many(_box),
    maps=named(_grid),
    map_image=count,
)
STATE = record(log_history=many(record(step=number)))
INFO = record(
    recipe=words,
    hf_medvlm=words,
    command=words,
    model_class=words,
    dataset=words,
    image_folder=words,
    sources=many(string),
    licences=many(string),
    split_sizes=named(total),
    rejected=named(total),
    versions=named(string),
    patients=count,
    parameters=count,
    trainable_parameters=count,
    steps=count,
    studies_without_licence=count,
    tokenizer_words=words,
    started_from=many(words),
    data_hash=words,
)
