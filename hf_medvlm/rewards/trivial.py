"""What a reward pays texts that look at no image: whoever is paid for those learns to write them.

`judge` compares the mean reward of trivial texts with that of the studies' own reports, before anything is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_medvlm.data.study import Study
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.metrics.text import CONSTANT_NORMAL_REPORT
from hf_medvlm.rewards.reward import Reward, Target

SHOWN = 200  # studies that are looked at
NEAR = 0.75  # of the way from an empty text to the study's own report, from which on a trivial text is flagged
NAMES_EVERYTHING = " ".join(f"There is {name.lower()}." for name in CHEXPERT_14 if name != "No Finding")
"""A long report that says every finding is there."""
OWN, EMPTY, TWICE = "its own report", "empty", "its own report twice"
EVERYTHING, PADDED = "every finding named", "its own report and every finding after it"
EPSILON = 1e-6  # rewards that are no further apart are equal


@dataclass(frozen=True)
class Verdict:
    """One finding about a reward.

    Args:
        stops: whether the reward must not be trained with. text: what was found, and the way out.
    """

    stops: bool
    text: str


def trivial_texts(
    studies: Sequence[Study], target: Target, training_reports: Sequence[str], seed: int = 0
) -> dict[str, list[str]]:
    """Name -> the text that it gives each study; the study's own report stands first, to be held against.

    The last two are that report made longer, by itself and by a list of all findings.
    """
    count, reports = len(studies), [target(study) for study in studies]
    drawn = np.random.default_rng(seed).integers(max(len(training_reports), 1), size=count)
    common = Counter(training_reports).most_common(1)[0][0] if training_reports else ""
    return {
        OWN: reports,
        EMPTY: [""] * count,
        "a constant normal report": [CONSTANT_NORMAL_REPORT] * count,
        "the commonest training report": [common] * count,
        "a training report drawn at random": [training_reports[place] if training_reports else "" for place in drawn],
        EVERYTHING: [NAMES_EVERYTHING] * count,
        TWICE: [f"{text} {text}" for text in reports],
        PADDED: [f"{text} {NAMES_EVERYTHING}" for text in reports],
    }


def judge(
    reward: Reward, studies: Sequence[Study], target: Target, training_reports: Sequence[str]
) -> tuple[dict[str, float], list[Verdict]]:
    """The mean reward of each of `trivial_texts` over the first studies, and what is wrong with it.

    Stops where a text that sees no image, or a report made longer, is paid as much as the study's own. Warns where a
    text that sees no image comes near, and where saying everything twice costs nothing.
    """
    studies = list(studies[:SHOWN])
    texts = trivial_texts(studies, target, training_reports)
    means = {name: float(reward(written, studies).total.mean()) for name, written in texts.items()}
    of_report, near = means[OWN], means[EMPTY] + NEAR * (means[OWN] - means[EMPTY])
    verdicts = []
    for name, value in means.items():
        paid = f"{name} is worth {value:.3f}, each study's own report {of_report:.3f}"
        as_much = value > of_report - EPSILON
        if name == TWICE:
            if value > of_report + EPSILON:
                verdicts.append(Verdict(True, f"{paid}: the reward pays for long reports; add cider or length to it"))
            elif as_much:
                verdicts.append(Verdict(False, f"{paid}: saying a thing twice costs nothing; add cider or length"))
        elif name in (EVERYTHING, PADDED):
            if as_much:
                way_out = "the reward pays for long reports that name everything; reward what denies findings too"
                verdicts.append(Verdict(True, f"{paid}: {way_out}, as findings_f1 or cider does"))
        elif name != OWN and as_much:
            verdicts.append(Verdict(True, f"{paid}: the model would learn to write that; choose another reward"))
        elif name != OWN and value > near:
            verdicts.append(Verdict(False, f"{paid}: the model may learn to write that, whatever the image shows"))
    return means, verdicts
