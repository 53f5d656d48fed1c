"""Scores of reports, whoever wrote them: text metrics, findings, audit, baselines, clinical metrics. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores
from hf_medvlm.language.findings import label_report
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.audit import Error, audit
from hf_medvlm.metrics.clinical import MISSING, clinical_scores
from hf_medvlm.metrics.clinical.judge import Judge
from hf_medvlm.metrics.findings_text import findings_f1, macro_of_sums
from hf_medvlm.metrics.intervals import bootstrap_interval, mean_columns, ratio_of_sums
from hf_medvlm.metrics.text import baseline_texts, score_texts, text_baselines

Result = TypeVar("Result")


def score_reports(
    texts: Sequence[str],
    references: Sequence[str],
    studies: Sequence[Study],
    train_reports: Sequence[str] = (),
    saw_prior: Sequence[bool] | None = None,
    clinical_metrics: Sequence[str] = (),
    clinical_weights: str | None = None,
    judge: Judge | None = None,
    *,
    clinical_baselines: bool = False,
) -> Scores:
    """Hold what was written of N studies against their reference reports.

    Args:
        texts, references: N each. studies: for ids, patients, images and boxes.
        train_reports: the most frequent one is a baseline; without any there is no such baseline.
        saw_prior: whether the earlier study was shown when the report was written; None: never.
        clinical_metrics: names of `hf_medvlm.metrics.clinical`; those without their weights have no score, and
            `figures["missing_metrics"]` says why. clinical_weights: the folder of their weights.
        judge: the model behind the metrics that ask one.
        clinical_baselines: the baselines' clinical metrics too, each as costly as the scores themselves.
    """
    patients = [study.patient_id for study in studies]
    shown = [False] * len(studies) if saw_prior is None else list(saw_prior)
    measured = score_texts(texts, references, patients)
    findings = findings_f1(texts, references)
    scores = Scores(metrics={}, n=len(studies), intervals=dict(measured.intervals))
    for name, value in measured.metrics.items():
        unit = "0 to 10" if name == "cider" else facts.FRACTION
        scores.add({name: value}, facts.TEXT, measured.protocol[name], unit=unit)
    scores.add(findings.metrics, facts.TEXT_FINDINGS, findings.protocol)
    scores.intervals["findings_f1_micro"] = bootstrap_interval(findings.sums, patients, ratio_of_sums)
    scores.intervals["findings_f1_macro"] = bootstrap_interval(findings.sums_of_each, patients, macro_of_sums)
    audited = audit(texts, references, patients, shown)
    scores.add(audited.metrics, facts.AUDIT, audited.protocol, better=facts.LOWER)
    scores.intervals |= audited.intervals
    distinct = {"distinct_predictions": len(set(texts)) / len(texts)}
    scores.add(distinct, facts.TEXT, "different generated reports, as a share of all", better=facts.NEITHER)
    per_study = measured.per_study | {"findings_f1": findings.per_study}
    scores.state(["findings_f1"], facts.TEXT_FINDINGS, "F1 over the findings of one study")
    scores.state(["sentence_bleu4"], facts.TEXT, "smoothed BLEU-4 of one study, 13a tokens")
    systems = baseline_texts(texts, train_reports)
    scores.baselines = text_baselines(texts, references, train_reports)
    for system, system_texts in systems.items():
        scores.baselines[system] |= findings_f1(system_texts, references).metrics
        scores.baselines[system] |= audit(system_texts, references, saw_prior=shown, resamples=0).metrics
    scores.figures = {"per_finding": findings.per_finding, "audit": audited.per_finding}
    if clinical_metrics:
        compute = partial(clinical_scores, references=references, weights=clinical_weights, judge=judge)
        result, missing = on_main_process(partial(compute, clinical_metrics, texts))
        scores.metrics |= result.values
        scores.facts |= result.facts
        scores.intervals |= {name: bootstrap_interval(each, patients) for name, each in result.per_study.items()}
        if "radcliq_v1" in result.per_study:
            each = mean_columns(result.per_study["radcliq_v1"])
            scores.intervals["radcliq_v1_reciprocal"] = bootstrap_interval(
                each, patients, lambda sums: 1 / ratio_of_sums(sums)
            )
        scores.figures[MISSING] = missing
        per_study |= result.per_study
        computed = [name for name in clinical_metrics if name not in missing]
        for system, system_texts in systems.items() if clinical_baselines and computed else ():
            computed_scores = on_main_process(partial(compute, computed, system_texts))
            scores.baselines[system] |= computed_scores[0].values
    scores.predictions = [
        _line(study, *pair, prior, errors, {name: values[number] for name, values in per_study.items()})
        for number, (study, pair, prior, errors) in enumerate(
            zip(studies, zip(references, texts, strict=True), shown, audited.errors, strict=True)
        )
    ]
    return scores


def on_main_process(compute: Callable[[], Result]) -> Result:
    """`compute()`, run by the main process alone and handed to the others; its error is raised in all of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return compute()
    from accelerate.utils import broadcast_object_list

    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = compute()
        except Exception as error:  # whatever it is, the other processes must hear of it
            box[1] = error
    broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def _line(
    study: Study, reference: str, text: str, saw_prior: bool, errors: Sequence[Error], values: dict[str, float]
) -> dict[str, Any]:
    """What `predictions.jsonl` says of one study."""
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "images": [image.path for image in study.images],
        "view": study.frontal.view if study.frontal else None,
        "reference": reference,
        "prediction": text,
        "saw_prior": saw_prior,
        "scores": values,
        "findings_reference": label_report(reference),
        "findings_prediction": label_report(text),
        "audit": [error.to_dict() for error in errors],
        "boxes": [
            {"image": b.image, "phrase": b.phrase, "xywh": list(b.xywh), "finding": b.finding} for b in study.boxes
        ],
    }
