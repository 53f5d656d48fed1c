"""Metrics of generated reports: BLEU, sacreBLEU, ROUGE, METEOR, CIDEr, each naming its protocol. No download, no Java.

`Metric` is the `evaluate.Metric`; `score_texts` gives all of them at once with intervals and per-study scores, and
`text_baselines` what a model must beat. The scores themselves are in `bleu.py`, `rouge.py`, `meteor.py` and `cider.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics import base, tokens
from hf_medvlm.metrics.bleu import (
    CANDIDATES,
    COLUMNS,
    LENGTH,
    MATCHES,
    ORDER,
    SHORTEST,
    bleu_counts,
    coco_bleu,
    corpus_bleu,
    sacre_bleu,
    sacre_bleu_details,
    sentence_bleu,
)
from hf_medvlm.metrics.cider import cider
from hf_medvlm.metrics.intervals import Statistic, bootstrap_interval, mean_columns, ratio_of_sums
from hf_medvlm.metrics.keywords import BY_NAME, check_keywords
from hf_medvlm.metrics.meteor import meteor
from hf_medvlm.metrics.rouge import ROUGE_NAMES, coco_rouge_l, rouge

CONSTANT_NORMAL_REPORT = (
    "The heart size and mediastinal contours are within normal limits. The lungs are clear. "
    "No pleural effusion or pneumothorax is seen. No acute bony abnormality."
)
"""Said of every study, it scores close to published models on IU X-ray: any model has to stand beside it."""

NAMES = ("bleu", "sacrebleu", "rouge", "meteor", "cider")

_CLEANED = {
    None: "texts as given",
    "coco": "lower case, all but letters, digits and spaces blanked",
    "r2gen": "R2Gen's clean_report_mimic_cxr",
}


Texts = list[str]
References = list[tuple[str, ...]]


@dataclass(frozen=True)
class Measured:
    """One metric of a set of studies: summands whose sums give the corpus value."""

    summands: np.ndarray  # (N, K)
    statistic: Statistic  # (R, K) sums -> (R,)
    protocol: str

    @property
    def value(self) -> float:
        """The metric of all studies; NaN without any."""
        return (
            float(self.statistic(self.summands.sum(axis=0, keepdims=True))[0]) if len(self.summands) else float("nan")
        )


def _mean(scores: Sequence[float] | np.ndarray, protocol: str) -> Measured:
    return Measured(mean_columns(scores), ratio_of_sums, protocol)


@lru_cache(maxsize=tokens.CACHE)
def _counts_13a(prediction: str, references: tuple[str, ...]) -> np.ndarray:
    return bleu_counts(tokens.tokens_13a(prediction), [tokens.tokens_13a(reference) for reference in references])


def _bleu(predictions: Texts, references: References, cleaning: str | None) -> dict[str, Measured]:
    pairs = zip(predictions, references, strict=True)
    if cleaning is None:
        rows, formula = [_counts_13a(p, refs) for p, refs in pairs], corpus_bleu
        how = "13a tokens, cased, corpus level, shortest reference length, as evaluate's bleu"
    else:
        rows, formula = [bleu_counts(p.split(), [r.split() for r in refs]) for p, refs in pairs], coco_bleu
        how = f"{_CLEANED[cleaning]}, white space tokens, corpus level, as pycocoevalcap's Bleu"
    counts = np.array(rows).reshape(-1, COLUMNS)
    return {f"bleu{n}": Measured(counts, partial(formula, order=n), how) for n in range(1, ORDER + 1)}


def _sacrebleu(predictions: Texts, references: References, cleaning: str | None) -> dict[str, Measured]:
    rows = [_counts_13a(p, refs) for p, refs in zip(predictions, references, strict=True)]
    how = f"{_CLEANED[cleaning]}; sacreBLEU, 13a tokens, cased, exponential smoothing, divided by 100"
    return {"sacrebleu": Measured(np.array(rows).reshape(-1, COLUMNS), sacre_bleu, how)}


def _rouge(predictions: Texts, references: References, cleaning: str | None) -> dict[str, Measured]:
    pairs = list(zip(predictions, references, strict=True))
    best = [np.max([rouge(p, r) for r in refs], axis=0) for p, refs in pairs]
    columns = np.array(best).reshape(-1, len(ROUGE_NAMES)).T
    how = f"{_CLEANED[cleaning]}; rouge-score tokens (accents kept), no stemming, F-measure, best reference, mean"
    measured = {name: _mean(column, how) for name, column in zip(ROUGE_NAMES, columns, strict=True)}
    measured["rougeLsum"] = _mean(columns[-1], f"{how}; sentences split after . ! ? and at line ends")
    if cleaning is not None:
        how = f"{_CLEANED[cleaning]}, white space tokens, pycocoevalcap's Rouge (beta 1.2), mean over studies"
        measured["rougeL"] = _mean([coco_rouge_l(p.split(), [r.split() for r in refs]) for p, refs in pairs], how)
    return measured


def _meteor(predictions: Texts, references: References, cleaning: str | None) -> dict[str, Measured]:
    how = (
        f"{_CLEANED[cleaning]}; nltk's METEOR (not Java METEOR 1.5) with WordNet 3.0, Treebank tokens of sentences "
        "split after . ! ? and at line ends, lower case, best reference, mean over studies"
    )
    pairs = zip(predictions, references, strict=True)
    return {"meteor": _mean([max(meteor(p, r) for r in refs) for p, refs in pairs], how)}


def _cider(predictions: Texts, references: References, cleaning: str | None) -> dict[str, Measured]:
    if cleaning is None:
        cleaning = "coco"
        predictions, references = _cleaned(predictions, references, cleaning)
    scores = cider([tuple(p.split()) for p in predictions], [[tuple(r.split()) for r in refs] for refs in references])
    how = f"{_CLEANED[cleaning]}; pycocoevalcap's CIDEr-D, from 0 to 10, document frequencies of these references"
    return {"cider": _mean(scores, how)}


_MEASURES = {"bleu": _bleu, "sacrebleu": _sacrebleu, "rouge": _rouge, "meteor": _meteor, "cider": _cider}


def _cleaned(predictions: Texts, references: References, cleaning: str | None) -> tuple[Texts, References]:
    return (
        [tokens.clean(text, cleaning) for text in predictions],
        [tuple(tokens.clean(text, cleaning) for text in texts) for texts in references],
    )


def measure(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    names: Sequence[str] = NAMES,
    cleaning: str | None = None,
) -> dict[str, Measured]:
    """The metrics of `names` as summands of each study, under the names of the results file (`bleu4`, `rougeL`, ...).

    Args:
        predictions: N generated reports; an empty one scores 0.
        references: N reports, or N lists of reports.
        cleaning: None keeps each metric's usual protocol; "coco" or "r2gen" cleans the texts first and then takes BLEU
            and ROUGE-L as pycocoevalcap computes them, as the literature on report generation does.

    Raises:
        ValueError: the two are not of one length, something is no text, a study has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references; give one for each")
    listed: list[Any] = [
        (texts,) if isinstance(texts, str) or not hasattr(texts, "__len__") else tuple(texts) for texts in references
    ]
    for number, (prediction, texts) in enumerate(zip(predictions, listed, strict=True)):
        if not texts or not all(isinstance(text, str) for text in (prediction, *texts)):
            raise ValueError(
                f"row {number}: a prediction is a text and a reference one text or several, "
                f"got {prediction!r:.200} and {texts!r:.200}"
            )
    prepared = _cleaned(list(predictions), listed, cleaning)
    return {name: measured for group in names for name, measured in _MEASURES[group](*prepared, cleaning).items()}


@dataclass(frozen=True)
class TextScores:
    """What `score_texts` gives, under the names of the results file."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    protocol: dict[str, str]
    per_study: dict[str, list[float]]  # N scores of each metric that is a mean over studies, and `sentence_bleu4`


def score_texts(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    patients: Sequence[Hashable] | None = None,
    *,
    cleaning: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> TextScores:
    """All text metrics with bootstrap intervals by patient and each study's own scores.

    Args:
        predictions, references, cleaning: see `measure`.
        patients: the patient of each study; None makes each study its own patient.
        resamples: bootstrap samples; 0 leaves the intervals out. CIDEr keeps its document frequencies in all of them.

    Raises:
        ValueError: as `measure`, and where patients are not one for each study.
    """
    measured = measure(predictions, references, cleaning=cleaning)
    per_study = {name: one.summands[:, 0].tolist() for name, one in measured.items() if one.statistic is ratio_of_sums}
    per_study["sentence_bleu4"] = sentence_bleu(measured["bleu4"].summands).tolist()
    intervals = {
        name: bootstrap_interval(one.summands, patients, one.statistic, resamples=resamples, seed=seed)
        for name, one in measured.items()
        if resamples
    }
    return TextScores(
        metrics={name: one.value for name, one in measured.items()},
        intervals=intervals,
        protocol={name: one.protocol for name, one in measured.items()},
        per_study=per_study,
    )


def baseline_texts(
    predictions: Sequence[str],
    train_reports: Sequence[str],
    *,
    normal_report: str = CONSTANT_NORMAL_REPORT,
    seed: int = 0,
) -> dict[str, list[str]]:
    """What three systems that see no image would write of each study, by name.

    `constant_normal` says `normal_report` of every study; `most_frequent` the commonest of `train_reports` (the first
    of equals; left out where there are none); `shuffled` gives each study's prediction to another (not with one study),
    which is what the model itself writes when it is shown the images in another order.
    """
    count = len(predictions)
    systems = {"constant_normal": [normal_report] * count}
    if train_reports:
        systems["most_frequent"] = [Counter(train_reports).most_common(1)[0][0]] * count
    if count > 1:
        order = np.random.default_rng(seed).permutation(count)
        shuffled = dict(zip(order, np.roll(order, 1), strict=True))  # one cycle: none keeps its own
        systems["shuffled"] = [predictions[shuffled[row]] for row in range(count)]
    return systems


def text_baselines(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    train_reports: Sequence[str],
    *,
    cleaning: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Text metrics of each of `baseline_texts`."""
    return {
        system: {name: one.value for name, one in measure(texts, references, cleaning=cleaning).items()}
        for system, texts in baseline_texts(predictions, train_reports, seed=seed).items()
    }


class Metric(base.InMemory, evaluate.Metric):
    """`bleu`, `sacrebleu`, `rouge`, `meteor` or `cider`, chosen by `config_name`.

    `compute(predictions=[text], references=[text or list of texts])` gives the metric under the names of the results
    file and its `protocol`; `bleu` and `sacrebleu` give `evaluate`'s own keys as well (there, `score` is out of 100).
    `compute` takes the keyword arguments of evaluate's metric of the same name (`max_order`, `use_stemmer`, ...).

    Args:
        config_name: one of `NAMES`.
        cleaning: see `measure`.

    Raises:
        ValueError: no text metric or cleaning has that name.
    """

    def __init__(self, config_name: str = "bleu", cleaning: str | None = None, **options: Any) -> None:
        if config_name not in NAMES:
            raise ValueError(f"there is no text metric {config_name!r:.100}; there are {', '.join(NAMES)}")
        tokens.clean("", cleaning)
        self.cleaning = cleaning
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        inputs = "predictions: texts; references: texts, or lists of texts."
        return base.text_pairs_info(__doc__, inputs, several_references=True)

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], **keywords: Any
    ) -> dict[str, Any]:
        check_keywords(self.config_name, keywords)
        measured = measure(predictions, references, [self.config_name], self.cleaning)
        if keywords:
            listed = [(texts,) if isinstance(texts, str) else tuple(texts) for texts in references]
            prepared = _cleaned(list(predictions), listed, self.cleaning)
            how = ", ".join(f"{key}={value!r}" for key, value in keywords.items() if not callable(value))
            protocol = (
                f"{_CLEANED[self.cleaning]}; evaluate's {self.config_name} with {how or 'a tokenizer of the caller'}"
            )
            return BY_NAME[self.config_name](*prepared, **keywords) | {"protocol": protocol}
        result: dict[str, Any] = {name: one.value for name, one in measured.items()}
        sums = next(iter(measured.values())).summands.sum(axis=0)
        if self.config_name == "bleu":
            result |= {"bleu": result["bleu4"], **_bleu_details(sums)}
        elif self.config_name == "sacrebleu":
            result |= {"score": 100 * result["sacrebleu"], **sacre_bleu_details(sums)}
        return result | {"protocol": _joined_protocol(measured)}


def _bleu_details(sums: np.ndarray) -> dict[str, Any]:
    """The other keys of `evaluate`'s bleu, from the summed counts (11,)."""
    length, reference = int(sums[LENGTH]), int(sums[SHORTEST])
    pairs = zip(sums[MATCHES], sums[CANDIDATES], strict=True)
    return {
        "precisions": [float(matches / candidates) if candidates else 0.0 for matches, candidates in pairs],
        "brevity_penalty": float(np.exp(min(0.0, 1 - reference / length))) if length else 0.0,
        "length_ratio": length / reference if reference else 0.0,
        "translation_length": length,
        "reference_length": reference,
    }


def _joined_protocol(measured: dict[str, Measured]) -> str:
    """One text for several metrics: each protocol once, after the names it holds for."""
    names: dict[str, list[str]] = {}
    for name, one in measured.items():
        names.setdefault(one.protocol, []).append(name)
    return "; ".join(f"{', '.join(group)}: {protocol}" for protocol, group in names.items())
