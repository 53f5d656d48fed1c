"""Clinical metrics behind the user's own folder of weights; nothing is fetched, and what is missing is named.

`clinical_scores` computes those that were asked for, each model run once over both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.errors import clipped
from hf_medvlm.metrics.clinical.results import ClinicalResult

if TYPE_CHECKING:
    from hf_medvlm.metrics.clinical.judge import Judge

NEEDS = {
    "chexbert": "chexbert.pth and bert-base-uncased's vocab.txt or tokenizer.json",
    "sembscore": "as chexbert",
    "bertscore": "distilroberta-base as transformers saves it",
    "bertscore_idf": "as bertscore",
    "radgraph": "the package radgraph, radgraph/ or radgraph-xl/ unpacked, and the BERT that its config names",
    "radcliq": "what chexbert, bertscore and radgraph need",
    "ratescore": "the package RaTEScore, RaTE-NER-Deberta/ and BioLORD-2023-C/",
    "judge_green": "a model that judges, behind an endpoint of yours: --judge_url, --judge_model",
    "judge_radfact": "as judge_green",
    "temporal_f1": "nothing",
    "bleu2_rexrank": "nothing",
}
"""Name of a clinical metric -> what has to lie in the weights folder."""

MISSING = "missing_metrics"
"""Among a results file's `figures`: clinical metric -> why it could not be computed."""


def missing_lines(figures: Mapping[str, Any]) -> list[str]:
    """A line for each reason why metrics that were asked for have no score, from a results file's `figures`."""
    reasons: dict[str, list[str]] = {}
    for name, reason in (figures.get(MISSING) or {}).items():
        reasons.setdefault(reason, []).append(name)
    return [f"no {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is no clinical metric.

    Raises:
        ValueError: with those there are.
    """
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise ValueError(
            f"there is no clinical metric {clipped(', '.join(map(repr, unknown)))}; there are {', '.join(NEEDS)}"
        )


def clinical_scores(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str],
    weights: str | Path | None = None,
    device: str | None = None,
    judge: Judge | None = None,
) -> tuple[ClinicalResult, dict[str, str]]:
    """The scores of all metrics of `names`, and the reason of each that could not be computed.

    Args:
        names: of `NEEDS`. weights: the folder in which their weights lie. device: a GPU where there is one by default.
        judge: the model behind `judge_green` and `judge_radfact`.

    Returns:
        (scores, {metric: what is missing}); a metric without its weights has no score, never 0.

    Raises:
        ValueError: an unknown name, weights that are there but cannot be read, texts that are not in pairs.
    """
    from hf_medvlm.metrics.clinical import bertscore, chexbert, radcliq, radgraph, ratescore, wordlists
    from hf_medvlm.metrics.clinical import judge as judges
    from hf_medvlm.metrics.clinical.weights import MissingWeights

    check_names(names)
    result, wanted = ClinicalResult(), set(names)
    missing: dict[str, str] = {}
    bert = ["bertscore"] * ("bertscore" in wanted) + ["bertscore_idf"] * bool(wanted & {"bertscore_idf", "radcliq"})
    parts = {
        "chexbert": lambda: chexbert.score(predictions, references, weights, device),
        "bertscore": lambda: bertscore.score(predictions, references, weights, device, bert),
        "radgraph": lambda: radgraph.score(predictions, references, weights, device),
        "ratescore": lambda: ratescore.score(predictions, references, weights, device),
        "judge": lambda: judges.score(predictions, references, judge, names),
        "words": lambda: wordlists.score(predictions, references, names),
    }
    users = {
        "chexbert": {"chexbert", "sembscore", "radcliq"},
        "bertscore": {"bertscore", "bertscore_idf", "radcliq"},
        "radgraph": {"radgraph", "radcliq"},
        "ratescore": {"ratescore"},
        "judge": {"judge_green", "judge_radfact"},
        "words": {"temporal_f1", "bleu2_rexrank"},
    }
    for part, compute in parts.items():
        if not wanted & users[part]:
            continue
        try:
            outcome = compute()
        except MissingWeights as error:
            missing |= {name: str(error) for name in names if name in users[part]}
            continue
        for kept in ("values", "per_study", "facts"):
            getattr(result, kept).update(getattr(outcome, kept))
    if "radcliq" in wanted and "radcliq" not in missing:
        radcliq.combine(result, predictions, references)
    return _only(result, wanted), missing


def what_is_missing(names: Sequence[str], weights: str | Path | None = None, has_judge: bool = False) -> dict[str, str]:
    """Metric -> what it lacks, as far as names of files and packages tell; "" where nothing. Loads nothing.

    Raises:
        ValueError: an unknown name.
    """
    from hf_medvlm.metrics.clinical import bertscore, chexbert, radgraph, ratescore
    from hf_medvlm.metrics.clinical.weights import MissingWeights

    check_names(names)

    def any_radgraph() -> None:
        try:
            radgraph.locate(weights, radgraph.MODELS[0])
        except MissingWeights:
            radgraph.locate(weights, radgraph.MODELS[1])

    def judge() -> None:
        if not has_judge:
            raise MissingWeights(NEEDS["judge_green"])

    parts = {
        ("chexbert", "sembscore", "radcliq"): lambda: chexbert.locate(weights),
        ("bertscore", "bertscore_idf", "radcliq"): lambda: bertscore.locate(weights),
        ("radgraph", "radcliq"): any_radgraph,
        ("ratescore",): lambda: ratescore.locate(weights),
        ("judge_green", "judge_radfact"): judge,
    }
    missing = dict.fromkeys(names, "")
    for users, look in parts.items():
        try:
            look()
        except MissingWeights as error:
            missing |= {name: missing[name] or str(error) for name in users if name in missing}
    return missing


def _only(result: ClinicalResult, wanted: set[str]) -> ClinicalResult:
    """Without what was computed for RadCliQ alone."""
    if "radcliq" not in wanted:
        if "chexbert" not in wanted:
            result = _without(result, lambda name: name.startswith("chexbert_"))
        elif "sembscore" not in wanted:
            result = _without(result, lambda name: name == "sembscore")
    return result


def _without(result: ClinicalResult, drop: Callable[[str], bool]) -> ClinicalResult:
    def rest(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if not drop(name)}

    return ClinicalResult(rest(result.values), rest(result.per_study), rest(result.facts))
