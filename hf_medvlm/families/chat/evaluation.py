"""Evaluation of chat models: reports as `TextEvaluation` scores them, and the accuracy of answers to questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hf_medvlm.data.conversations import IMAGE, PREVIOUS, answer_of
from hf_medvlm.data.sources.vqa_rad import CLOSED, OPEN
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores
from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.metrics import facts

PROTOCOL = "share of answers equal to the reference, lower case, without punctuation and articles; {} questions"


def normalise_answer(text: str) -> str:
    """Lower case, letters and digits only, without articles: `"The left lung."` -> `left lung`."""
    words = re.findall(r"[^\W_]+", text.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def answer_accuracy(predictions: Sequence[str], references: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """`closed_accuracy` and `open_accuracy`; NaN where there are no such questions."""
    result = {}
    for kind in (CLOSED, OPEN):
        hits = [
            normalise_answer(prediction) == normalise_answer(reference)
            for prediction, reference, answer_kind in zip(predictions, references, kinds, strict=True)
            if answer_kind == kind
        ]
        result[f"{kind.lower()}_accuracy"] = sum(hits) / len(hits) if hits else float("nan")
    return result


@dataclass
class ChatEvaluation(TextEvaluation):
    """`TextEvaluation`, and for studies with an `answer_type` the accuracy of closed and open answers.

    Args:
        train_studies: with their conversations; the most frequent training answer of each kind is the baseline.
    """

    METRICS: ClassVar[tuple[str, ...]] = (*TextEvaluation.METRICS, "closed_accuracy", "open_accuracy")

    train_studies: Sequence[Study] = ()

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """The accuracy of a kind of question needs questions of that kind."""
        for kind in (CLOSED, OPEN):
            if metric == f"{kind.lower()}_accuracy" and not any(study.answer_type == kind for study in studies):
                return f"none of its {len(studies)} studies is a question whose answer_type is {kind}"
        return super().undefined(metric, studies)

    def instead(self) -> tuple[tuple[str, bool], ...]:
        return (("closed_accuracy", True), ("open_accuracy", True), *super().instead())

    def saw_prior(self, study: Study) -> bool:
        """As the question says, which names the images that it shows (`data.conversations`)."""
        return any(IMAGE in turn["value"] and PREVIOUS in turn["value"] for turn in study.conversations)

    def score_reports(self, texts: list[str], references: list[str], studies: list[Study]) -> Scores:
        scores = super().score_reports(texts, references, studies)
        kinds = [study.answer_type for study in studies]
        if not any(kinds):
            return scores
        how = {
            f"{kind.lower()}_accuracy": PROTOCOL.format(f"{kinds.count(kind)} {kind.lower()}")
            for kind in (CLOSED, OPEN)
        }
        scores.add(answer_accuracy(texts, references, kinds), facts.QUESTIONS, how)
        majority = self.majority_answers()
        guesses = [majority.get(kind, "") for kind in kinds]
        scores.baselines["majority_answer"] = answer_accuracy(guesses, references, kinds)
        for prediction, kind in zip(scores.predictions, kinds, strict=True):
            prediction["answer_type"] = kind
        return scores

    def majority_answers(self) -> dict[str, str]:
        """Kind of question -> its most frequent answer in training."""
        answers = {
            kind: Counter(answer_of(s).lower() for s in self.train_studies if s.answer_type == kind)
            for kind in (CLOSED, OPEN)
        }
        return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items() if counts}
