"""The keyword arguments that evaluate's own bleu, rouge, meteor and sacrebleu take, for those who come from there.

Only a call that gives one of them comes here; each score is then computed as evaluate's script of that name does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_medvlm.errors import clipped
from hf_medvlm.metrics import wordnet
from hf_medvlm.metrics.rouge import ROUGE_NAMES
from hf_medvlm.metrics.tokens import split_sentences, tokens_13a, tokens_treebank

Tokenizer = Callable[[str], Sequence[str]]
KEYWORDS = {
    "bleu": ("tokenizer", "max_order", "smooth"),
    "rouge": ("rouge_types", "use_aggregator", "use_stemmer", "tokenizer"),
    "meteor": ("alpha", "beta", "gamma"),
    "sacrebleu": ("smooth_method", "smooth_value", "force", "lowercase", "tokenize", "use_effective_order"),
    "cider": (),
}


def check_keywords(name: str, keywords: dict[str, Any]) -> None:
    """Refuse what evaluate's metric of that name does not take.

    Raises:
        ValueError: with the keywords that there are.
    """
    unknown = [key for key in keywords if key not in KEYWORDS[name]]
    if unknown:
        there = ", ".join(KEYWORDS[name]) or "none"
        raise ValueError(f"{name} takes no {clipped(', '.join(map(repr, unknown)))}; its keyword arguments: {there}")


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer = tokens_13a,
    max_order: int = 4,
    smooth: bool = False,
) -> dict[str, Any]:
    """evaluate's bleu: tensorflow/nmt's corpus BLEU up to `max_order`, add-one smoothed on request."""
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    matches, possible, length, shortest = np.zeros(max_order), np.zeros(max_order), 0, 0
    for prediction, texts in zip(predictions, references, strict=True):
        candidate, others = list(tokenizer(prediction)), [list(tokenizer(text)) for text in texts]
        length, shortest = length + len(candidate), shortest + min(map(len, others))
        for n in range(1, max_order + 1):
            most: Counter = Counter()
            for other in others:
                most |= _ngrams(other, n)
            matches[n - 1] += (_ngrams(candidate, n) & most).total()
            possible[n - 1] += max(len(candidate) - n + 1, 0)
    if smooth:
        precisions = (matches + 1) / (possible + 1)
    else:
        precisions = np.divide(matches, possible, out=np.zeros(max_order), where=possible > 0)
    mean = float(np.exp(np.log(precisions).mean())) if precisions.min() > 0 else 0.0
    ratio = length / shortest if shortest else 0.0
    penalty = 1.0 if ratio > 1 else float(np.exp(1 - 1 / ratio)) if ratio else 0.0
    return {
        "bleu": mean * penalty,
        "precisions": precisions.tolist(),
        "brevity_penalty": penalty,
        "length_ratio": ratio,
        "translation_length": length,
        "reference_length": shortest,
    }


def _ngrams(tokens: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    rouge_types: Sequence[str] | None = None,
    use_aggregator: bool = True,
    use_stemmer: bool = False,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    """rouge-score's F-measures; the mean over studies (evaluate's is a bootstrap's median), or each study's in a list.

    Sentences of `rougeLsum` are split as in `split_sentences`.
    """
    from rouge_score import rouge_scorer

    class Words:
        tokenize = staticmethod(tokenizer) if tokenizer else None

    scorer = rouge_scorer.RougeScorer(
        list(rouge_types or ROUGE_NAMES), use_stemmer=use_stemmer, tokenizer=Words() if tokenizer else None
    )
    lines = ["\n".join(split_sentences(text)) for text in predictions]
    rows = [
        scorer.score_multi(["\n".join(split_sentences(text)) for text in texts], line)
        for line, texts in zip(lines, references, strict=True)
    ]
    columns = {name: [float(row[name].fmeasure) for row in rows] for name in scorer.rouge_types}
    if not use_aggregator:
        return columns
    return {name: float(np.mean(values)) if values else float("nan") for name, values in columns.items()}


def meteor(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    alpha: float = 0.9,
    beta: float = 3,
    gamma: float = 0.5,
) -> dict[str, float]:
    """nltk's METEOR with other weights, best reference, mean over studies."""
    from nltk.translate.meteor_score import meteor_score

    scores = [
        meteor_score(
            [tokens_treebank(text) for text in texts],
            tokens_treebank(prediction),
            wordnet=wordnet.load(),
            alpha=alpha,
            beta=beta,
            gamma=gamma,
        )
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {"meteor": float(np.mean(scores)) if scores else float("nan")}


def sacrebleu(predictions: Sequence[str], references: Sequence[Sequence[str]], **options: Any) -> dict[str, Any]:
    """sacreBLEU's own corpus score (`score`, out of 100, and divided by 100 as `sacrebleu`), with its counts."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references), default=1)
    columns: list[Any] = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    result = corpus_bleu(list(predictions), columns, **options)
    return {
        "sacrebleu": result.score / 100,
        "score": result.score,
        "counts": result.counts,
        "totals": result.totals,
        "precisions": result.precisions,
        "bp": result.bp,
        "sys_len": result.sys_len,
        "ref_len": result.ref_len,
    }


BY_NAME: dict[str, Callable[..., dict[str, Any]]] = {
    "bleu": bleu,
    "rouge": rouge,
    "meteor": meteor,
    "sacrebleu": sacrebleu,
}
