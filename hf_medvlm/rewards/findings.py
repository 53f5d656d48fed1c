"""Rewards by what two reports say of the chest: findings, with sides and change, and sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from hf_medvlm.language.descriptions import describe_findings
from hf_medvlm.language.findings import label_report
from hf_medvlm.language.negation import ABSENT
from hf_medvlm.language.sections import sentences
from hf_medvlm.metrics.findings_text import findings_f1


def findings_reward(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 over the 14 findings of each report, as `findings_f1` gives it for single studies.

    That F1 is not defined where neither text has a finding, "No Finding" among them (all that is named is denied, say).
    Such a report is worth 1 where it speaks of the findings at all, as a normal study's should, and 0 where it is
    silent: an empty report agrees with nothing.
    """
    f1 = findings_f1(texts, references).per_study
    return [
        float(_speaks(text)) if np.isnan(score) else score for text, score in zip(texts, f1, strict=True)
    ]  # fmt: skip


def _speaks(text: str) -> bool:
    return any(state is not None for state in label_report(text).values())


def side_change_reward(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 over what is said of the findings: that one is there, each side that it has, and how it has changed.

    "Larger left effusion" says three things. Where neither text has a finding: as `findings_reward`.
    """
    plain = findings_reward(texts, references)
    pairs = zip(texts, references, plain, strict=True)
    return [_f1(_statements(text), _statements(reference), otherwise) for text, reference, otherwise in pairs]


@lru_cache(maxsize=1 << 14)
def _statements(text: str) -> frozenset[tuple[str, str]]:
    """(finding, what is said of it) of the findings that are present or uncertain."""
    statements = set()
    for finding, what in describe_findings(text).items():
        if what.state != ABSENT:
            statements |= {(finding, "present"), *((finding, side) for side in what.sides)}
            statements |= {(finding, what.change)} if what.change else set()
    return frozenset(statements)


def _f1(first: frozenset, second: frozenset, otherwise: float) -> float:
    size = len(first) + len(second)
    return 2 * len(first & second) / size if size else otherwise


def sentence_reward(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 over sentences: those of the report that the reference agrees with, and those of the reference that the
    report agrees with.

    Sentences that name no finding are not looked at. One agrees with a text that says the same of each of its findings:
    present or uncertain, or absent. A sentence whose findings earlier ones have named agrees with nothing, so that no
    report gains by saying a thing twice. Where neither text names a finding: as `findings_reward`.
    """
    plain = findings_reward(texts, references)
    scores = []
    for text, reference, otherwise in zip(texts, references, plain, strict=True):
        ours, theirs = _sentence_states(text), _sentence_states(reference)
        if not ours and not theirs:
            scores.append(otherwise)
            continue
        precision, recall = (
            len(_agreeing(one, other)) / max(len(one), 1) for one, other in ((ours, theirs), (theirs, ours))
        )
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return scores


States = tuple[tuple[str, bool], ...]


@lru_cache(maxsize=1 << 14)
def _sentence_states(text: str) -> tuple[States, ...]:
    """For each sentence that names findings: (finding, whether it is there) pairs; "No Finding" is not one."""
    by_sentence = []
    for sentence in sentences(text):
        labels = label_report(sentence).items()
        states = [(name, state != 0) for name, state in labels if state is not None and name != "No Finding"]
        if states:
            by_sentence.append(tuple(sorted(states)))
    return tuple(by_sentence)


def _agreeing(ours: Sequence[States], theirs: Sequence[States]) -> list[States]:
    """Those of `ours` all of whose pairs stand in `theirs` and some of whose findings are new."""
    there = {pair for states in theirs for pair in states}
    seen: set[str] = set()
    agreeing = []
    for states in ours:
        names = {name for name, _ in states}
        if there.issuperset(states) and not names <= seen:
            agreeing.append(states)
        seen |= names
    return agreeing


FINDINGS: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "findings_f1": findings_reward,
    "findings_side_change_f1": side_change_reward,
    "findings_sentences_f1": sentence_reward,
}
"""Name of a reward -> (texts, references) -> one number a text, from 0 to 1."""
