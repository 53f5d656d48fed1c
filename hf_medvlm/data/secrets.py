"""Tokens, keys and passwords are masked before a line is written to a file, a page or a log."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

MASK = "***"
_OPTION = re.compile(r"--?[\w-]*(token(?!s|iz)|password|passwd|secret|api_?-?key|access_?-?key|credential)[\w-]*", re.I)
_NAME = re.compile(r"token(?!s|iz)|password|passwd|secret|api_?key|access_?key|private_?key|credential", re.I)
_KNOWN = re.compile(
    r"\b(hf_|api_org_|ghp_|gho_|github_pat_|glpat-|sk-|xox[bp]-|AKIA|local-|wandb_v1_)[A-Za-z0-9_\-]{12,}"
    r"|\b[0-9a-f]{40}\b(?=.*wandb)"
)
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@]*:[^/\s@]+@", re.I)
_QUERY = re.compile(r"([?&][\w-]*(?:token|key|secret|password|signature|sig)[\w-]*=)[^&\s#]+", re.I)
SHORTEST = 8
"""Characters of an environment variable's value, below which it is no secret that could be told from a word."""


def masked(text: str) -> str:
    """`text` without the tokens of known services, without passwords in URLs, and without the values of environment
    variables that a token, key, secret or password is kept in (`HF_TOKEN`, `WANDB_API_KEY`, ...)."""
    text = _QUERY.sub(rf"\g<1>{MASK}", _URL.sub(rf"\g<1>{MASK}@", _KNOWN.sub(MASK, text)))
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and _NAME.search(name) and not os.path.exists(value):
            text = text.replace(value, MASK)
    return text


def masked_command(words: Sequence[str]) -> str:
    """A command line as one text, the values of options such as `--hub_token` masked, and what `masked` knows."""
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = _OPTION.fullmatch(name) is not None
        if hide and not word.startswith("--"):
            shown.append(MASK)
        else:
            shown.append(f"{name}={MASK}" if secret and equals else word)
        hide = secret and not equals
    return masked(" ".join(shown))


def masked_values(value: Any, secrets: Sequence[str] = ()) -> Any:
    """`masked` of every text in nested lists and objects.

    Args:
        secrets: further texts to mask, such as a token that a YAML file gave.
    """
    if isinstance(value, dict):
        return {key: masked_values(part, secrets) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked_values(part, secrets) for part in value]
    if not isinstance(value, str):
        return value
    for secret in filter(None, secrets):
        value = value.replace(secret, MASK)
    return masked(value)
