"""`Reward`: a weighted sum of named terms, each a number for each report beside its study.

reward = make_reward("findings_f1,cider=0.5,length=0.1,my_rewards:politeness", target, training_reports)
values = reward(texts, studies)             # values.total (N,), values.terms {"findings_f1": (N,), ...}
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_medvlm.data.study import Study
from hf_medvlm.rewards.clinical import CLINICAL, clinical_reward
from hf_medvlm.rewards.findings import FINDINGS
from hf_medvlm.rewards.texts import TEXTS, cider_reward

Term = Callable[[Sequence[str], Sequence[Study]], Sequence[float]]
"""(N texts, their N studies) -> N numbers, the greater the better."""
Target = Callable[[Study], str]
"""The text of a study that the model is to write."""
NAMES = (*FINDINGS, *TEXTS, "cider", *CLINICAL)


@dataclass(frozen=True)
class RewardValues:
    """What `Reward` gives of N texts."""

    total: np.ndarray
    """(N,): the weighted sum of the terms."""
    terms: dict[str, np.ndarray]
    """name -> (N,): each term, not weighted."""


@dataclass
class Reward:
    """The weighted sum of `terms`.

    Args:
        terms: name -> what gives it. weights: name -> its weight.
    """

    terms: Mapping[str, Term]
    weights: Mapping[str, float]

    def __call__(self, texts: Sequence[str], studies: Sequence[Study]) -> RewardValues:
        """The worth of each text beside its study.

        Raises:
            ValueError: a term gives another number of values than there are texts, or one that is no finite number.
        """
        values = {name: _checked(name, term(texts, studies), len(texts)) for name, term in self.terms.items()}
        total = sum((self.weights[name] * value for name, value in values.items()), np.zeros(len(texts)))
        return RewardValues(total, values)

    def describe(self) -> str:
        """`findings_f1 + 0.5 cider`."""
        weights = ((name, self.weights[name]) for name in self.terms)
        return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights)


def _checked(name: str, values: Sequence[float], count: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward {name} must give a number for each text, got {values!r:.100}") from error
    if array.shape != (count,):
        raise ValueError(f"the reward {name} must give {count} numbers for {count} texts, got shape {array.shape}")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"the reward {name} gives {array[place]} for text number {place}; give a finite number")
    return array


def make_reward(
    spec: str, target: Target, training_reports: Sequence[str], weights_folder: str | Path | None = None
) -> Reward:
    """The reward of an option: names separated by commas, each with a weight if it is not 1.

    Args:
        spec: `findings_f1,cider=0.5,module:function`; see docs/rewards.md for the names.
        target: the reference of a study.
        training_reports: give CIDEr its document frequencies.
        weights_folder: where the weights of CheXbert and RadGraph lie.

    Raises:
        ValueError: an unknown name, a weight that is no number, no term at all, weights that are not there, a function
            that cannot be imported.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        name, _, weight = (word.strip() for word in part.partition("="))
        if name in weights:
            raise ValueError(f"the reward {name} is named twice in {spec!r:.100}; give it one weight")
        weights[name] = _weight(part, weight)
    if not weights:
        raise ValueError(f"no reward in {spec!r:.100}; choose of {', '.join(NAMES)}, or name a module:function")
    terms = {name: _term(name, target, training_reports, weights_folder) for name in weights}
    return Reward(terms, weights)


def _weight(part: str, weight: str) -> float:
    try:
        value = float(weight) if weight else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value == 0:
        raise ValueError(
            f"the reward {part!r:.100}: {weight!r:.100} is no weight; write a number other than 0, as in cider=0.5"
        )
    return value


def _term(name: str, target: Target, training_reports: Sequence[str], weights_folder: str | Path | None) -> Term:
    if ":" in name:
        return load_function(name)
    if name in FINDINGS:
        score = FINDINGS[name]
    elif name in TEXTS:
        score = TEXTS[name]
    elif name == "cider":
        score = cider_reward(training_reports)
    elif name in CLINICAL:
        score = clinical_reward(name, weights_folder)
    else:
        raise ValueError(f"there is no reward {name!r:.100}; there are {', '.join(NAMES)}, and any module:function")
    return lambda texts, studies: score(texts, [target(study) for study in studies])


def load_function(name: str) -> Term:
    """The function `module:function`, a module of the working folder included.

    Raises:
        ValueError: there is no such module or function, or importing it fails.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"the reward {name}: {type(error).__name__}: {error}; write module:function, with the module in this "
            "folder or installed"
        ) from error
    if not callable(function):
        raise ValueError(f"the reward {name}: {attribute} is no function of (texts, studies)")
    return function
