"""Which licences of data are known to be open: everyone may use, change and pass on what comes under them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_OPEN = re.compile(
    r"""
    (cc\ ?0|creative\ commons\ zero)(\ 1\ 0)?(\ universal)?(\ public\ domain\ dedication)?
  | (public\ domain|pddl)(\ mark)?(\ 1\ 0)?
  | (cc|creative\ commons)\ (by|attribution)(\ (sa|share\ ?alike))?(\ [1-4]\ [05])?(\ (international|unported|generic))?
  | (odc\ by|odbl|odc\ odbl)(\ 1\ 0)?
  | apache(\ license)?(\ version)?(\ 2(\ 0)?)?
  | mit(\ license)?
  | bsd(\ [23]\ clause)?(\ license)?
    """,
    re.VERBOSE,
)
"""By the Open Definition: no clause against trade (NC) or change (ND), no agreement to sign. Punctuation is a blank."""


def is_open(licence: str) -> bool:
    """Whether a licence is one of those known to be open; anything else, and no licence at all, is not."""
    return _OPEN.fullmatch(" ".join(re.findall(r"[a-z]+|\d+", licence.lower()))) is not None


def all_open(licences: Mapping[str, int] | Iterable[str]) -> bool:
    """Whether each of them is open; False for none at all."""
    return bool(names := list(licences)) and all(map(is_open, names))
