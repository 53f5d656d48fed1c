"""What generated reports get wrong, finding by finding: invented, omitted, side, severity, change. Needs no model.

Both texts are read by `language.describe_findings`. A report on one image alone cannot know what has changed; how many
say so all the same is counted as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.language.descriptions import Description, comparing_sentences, describe_findings
from hf_medvlm.language.negation import ABSENT, PRESENT
from hf_medvlm.language.tongues import not_english
from hf_medvlm.metrics.base import InMemory, text_pairs_info
from hf_medvlm.metrics.intervals import bootstrap_ratios

AUDITED = tuple(name for name in CHEXPERT_14 if name != "No Finding")
KINDS = {
    "invented": "of the findings that predictions say are present, the share that the reference denies or leaves out",
    "omitted": "of the findings that references say are present, the share that the prediction denies or leaves out",
    "side_wrong": "of the findings that both texts have and give a side, the share with another side",
    "severity_wrong": "of the findings that both texts have and give a severity or size (mild, moderate, severe), "
    "the share with another one",
    "change_wrong": "of the findings whose change both texts tell (new, worse, unchanged, improved, resolved), the "
    "share with another one",
}
WITHOUT_PRIOR = "change_without_prior"
WITHOUT_PRIOR_HOW = (
    "of the reports written without having been shown an earlier study, the share that says what has changed since one"
)
PROTOCOL = (
    "both texts read by hf_medvlm.language.describe_findings (rules); 13 CheXpert findings with Support Devices; what "
    "is uncertain is neither invented nor omitted; all findings of all studies pooled"
)


@dataclass(frozen=True)
class Error:
    """One error of one report, in words."""

    kind: str
    finding: str
    reference: str
    prediction: str

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "finding": self.finding, "reference": self.reference, "prediction": self.prediction}


@dataclass
class Audit:
    """What `audit` returns; rates are fractions, lower is better, NaN where nothing could go wrong.

    Args:
        metrics: `audit_invented`, ... and `audit_change_without_prior`.
        intervals, protocol: of each of them; no intervals where none were asked for.
        per_finding: CheXpert name -> kind -> rate, errors, of (what could go wrong), low, high.
        errors: those of each study.
        sums: (N, K, 2), errors and what could go wrong in each study, of each of `metrics` in their order.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    protocol: dict[str, str]
    per_finding: dict[str, dict[str, dict[str, float]]]
    errors: list[list[Error]] = field(default_factory=list)
    sums: np.ndarray = field(default_factory=lambda: np.zeros((0, len(KINDS) + 1, 2)))


def audit(
    predictions: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Hashable] | None = None,
    saw_prior: Sequence[bool] | None = None,
    *,
    resamples: int = 1000,
) -> Audit:
    """Hold generated against reference reports, finding by finding.

    Args:
        predictions, references: N texts each.
        patients: the patient of each study, for the intervals; None makes each study its own.
        saw_prior: whether the earlier study was shown when the report was written; None: never.
        resamples: bootstrap samples; 0 leaves the intervals out.

    Raises:
        ValueError: these are not of one length.
    """
    count = len(predictions)
    saw_prior = [False] * count if saw_prior is None else saw_prior
    for name, values in (("references", references), ("patients", patients), ("saw_prior", saw_prior)):
        if values is not None and len(values) != count:
            raise ValueError(f"audit needs one of {name} for each prediction, got {len(values)} and {count}")
    sums = np.zeros((count, len(AUDITED), len(KINDS), 2))  # errors, and what could go wrong
    alone = np.zeros((count, 1, 2))
    errors: list[list[Error]] = []
    for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        written, true = describe_findings(prediction), describe_findings(reference)
        listed: list[Error] = []
        for place, finding in enumerate(AUDITED):
            for kind, wrong in _judge(true.get(finding), written.get(finding)).items():
                sums[number, place, list(KINDS).index(kind)] = wrong, 1
                if wrong:
                    listed.append(Error(kind, finding, in_words(true.get(finding)), in_words(written.get(finding))))
        if not saw_prior[number]:
            sentences = comparing_sentences(prediction)
            alone[number, 0] = bool(sentences), 1
            if sentences:
                listed.append(Error(WITHOUT_PRIOR, "", "no earlier study was shown", sentences[0]))
        errors.append(listed)
    pooled = np.concatenate([sums.sum(axis=1), alone], axis=1)  # (N, kinds + 1, 2)
    names = [f"audit_{kind}" for kind in (*KINDS, WITHOUT_PRIOR)]
    protocol = {f"audit_{kind}": f"{how}; {PROTOCOL}" for kind, how in KINDS.items()}
    protocol[f"audit_{WITHOUT_PRIOR}"] = f"{WITHOUT_PRIOR_HOW}; by the words of change in its sentences"
    if language := not_english(references):
        protocol = {name: f"{how}; {language}" for name, how in protocol.items()}
    each = sums.reshape(count, -1, 2)
    spans = bootstrap_ratios(np.concatenate([pooled, each], axis=1), patients, resamples=resamples) if resamples else []
    spread = spans[len(names) :] or [(float("nan"), float("nan"))] * each.shape[1]
    table: dict[str, dict[str, dict[str, float]]] = {}
    for index, (low, high) in enumerate(spread):
        finding, kind = AUDITED[index // len(KINDS)], list(KINDS)[index % len(KINDS)]
        wrong, of = each[:, index].sum(axis=0)
        if of:
            row = {"rate": float(wrong / of), "errors": int(wrong), "of": int(of), "low": low, "high": high}
            table.setdefault(finding, {})[kind] = row
    totals = pooled.sum(axis=0)
    return Audit(
        metrics={
            name: float(wrong / of) if of else float("nan") for name, (wrong, of) in zip(names, totals, strict=True)
        },
        intervals=dict(zip(names, spans, strict=False)),
        protocol=protocol,
        per_finding=table,
        errors=errors,
        sums=pooled,
    )


def _judge(true: Description | None, written: Description | None) -> dict[str, bool]:
    """Kind -> whether it is wrong, for each kind that the two could get wrong."""
    judged = {}
    has = true is not None and true.state != ABSENT
    says = written is not None and written.state != ABSENT
    if written is not None and written.state == PRESENT:
        judged["invented"] = not has
    if true is not None and true.state == PRESENT:
        judged["omitted"] = not says
    if true is None or written is None or has != says:
        return judged
    if has and true.sides and written.sides:
        judged["side_wrong"] = true.sides != written.sides
    if has and true.severity and written.severity:
        judged["severity_wrong"] = true.severity != written.severity
    if true.change and written.change:
        judged["change_wrong"] = true.change != written.change
    return judged


def in_words(described: Description | None) -> str:
    """A description as one phrase: "present, left, mild, unchanged"."""
    if described is None:
        return "not mentioned"
    side = "both sides" if len(described.sides) == 2 else "".join(described.sides)
    return ", ".join(part for part in (described.state, side, described.severity, described.change) if part)


class Metric(InMemory, evaluate.Metric):
    """`compute(predictions=texts, references=texts, patients=ids, saw_prior=flags)`, as in `audit`.

    Gives the pooled rates, their `protocol` and `intervals`, and `per_finding`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return text_pairs_info(__doc__, audit.__doc__)

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        patients: Sequence[Hashable] | None = None,
        saw_prior: Sequence[bool] | None = None,
    ) -> dict[str, Any]:
        result = audit(predictions, references, patients, saw_prior)
        return {
            **result.metrics,
            "per_finding": result.per_finding,
            "intervals": result.intervals,
            "protocol": "; ".join(f"{name}: {how}" for name, how in result.protocol.items()),
        }
