"""Scores by a language model that judges: GREEN-like and RadFact-like, through an endpoint that the user names.

The endpoint speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, TGI). Reports go to it and nowhere else: an
address outside this machine and its private network is refused unless the user has said in words that the texts may go
there, proxies of the environment are passed by, redirects are not followed.

The formulas are those of Ostmeier et al. 2024, "GREEN" (arXiv 2405.03595), and of Bannur et al. 2024, "MAIRA-2" (arXiv
2406.04449, RadFact's logical precision and recall). The prompts are ours and the judge is whichever model the user
serves, so the scores carry names of their own and are not to be held against published ones.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import evaluate
import numpy as np

from hf_medvlm.language.sections import sentences
from hf_medvlm.metrics.base import InMemory, text_pairs_info
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs
from hf_medvlm.metrics.clinical.weights import MissingWeights

NAMES = ("judge_green", "judge_radfact")
KEY = "HF_MEDVLM_JUDGE_KEY"
"""The environment variable of the endpoint's key, where it wants one; never written down."""
ERRORS = {
    "a": "a finding in the candidate that the reference does not have",
    "b": "a finding of the reference that the candidate lacks",
    "c": "a wrong place or side of a finding",
    "d": "a wrong severity of a finding",
    "e": "a comparison with an earlier study that the reference does not make",
    "f": "a comparison of the reference with an earlier study that the candidate lacks",
}
GREEN_PROMPT = (
    "Compare a candidate radiology report with the reference report of the same study. Count the findings of the "
    "reference that the candidate states rightly, and the candidate's errors of each category, those that matter "
    "clinically apart from those that do not:\n"
    + "\n".join(f"({letter}) {what}" for letter, what in ERRORS.items())
    + '\nAnswer with one JSON object and nothing else: {"matched_findings": 0, "significant_errors": {"a": 0, "b": 0, '
    '"c": 0, "d": 0, "e": 0, "f": 0}, "insignificant_errors": {"a": 0, "b": 0, "c": 0, "d": 0, "e": 0, "f": 0}}'
    "\n\nReference report:\n{reference}\n\nCandidate report:\n{prediction}"
)
RADFACT_PROMPT = (
    "For each numbered sentence of a radiology report, decide whether the whole sentence follows logically from the "
    'other report of the same study. Answer with one JSON object and nothing else: {"entailed": [true, false, ...]}, '
    "one value for each sentence, in order.\n\nOther report:\n{other}\n\nSentences:\n{sentences}"
)
GREEN = "matched findings / (matched findings + clinically significant errors), 0 without a matched finding"
RADFACT = "share of the {} sentences that follow from the {} report"
WORKERS, TRIES = 8, 2


@dataclass(frozen=True)
class Judge:
    """A model behind an endpoint.

    Args:
        url: up to and with the version, "http://localhost:8000/v1". model: its name there.
        hosted_acknowledged: the user's word that reports may go to an address outside the private network.
        timeout: seconds to wait for one answer.

    Raises:
        ValueError: no http address, or one outside the private network without `hosted_acknowledged`.
    """

    url: str
    model: str
    hosted_acknowledged: bool = False
    timeout: float = 300

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--judge_url {self.url!r:.100}: name an address such as http://localhost:8000/v1")
        if not self.model:
            raise ValueError(f"--judge_model: name the model that {self.url} serves")
        if not self.hosted_acknowledged and not is_private(parts.hostname):
            raise ValueError(
                f"--judge_url {self.url}: {parts.hostname} lies outside this machine and its private network; reports "
                "of credentialed corpora may not be sent to hosted services; serve a model yourself, or say with "
                "--judge_hosted_acknowledged that these texts may go there"
            )

    def ask(self, prompt: str) -> str:
        """The answer to one prompt, at temperature 0.

        Raises:
            OSError: the endpoint cannot be reached, refuses, takes too long, or answers something else.
        """
        content = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(content).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, HTTPException) as error:
            raise OSError(f"it answers, but not as chat completions do: {type(error).__name__}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry reports to an address that nobody named."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def is_private(host: str) -> bool:
    """Whether every address of a host lies on this machine or in a private network.

    Raises:
        ValueError: the host has no address.
    """
    try:
        hosts = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ValueError(f"--judge_url: the host {host!r:.100} has no address here ({error})") from error
    addresses = [ipaddress.ip_address(str(address).partition("%")[0]) for address in hosts]
    return all(address.is_loopback or address.is_private or address.is_link_local for address in addresses)


def score(
    predictions: Sequence[str], references: Sequence[str], judge: Judge | None, names: Sequence[str] = NAMES
) -> ClinicalResult:
    """`judge_green`, and `judge_radfact` (F1) with its precision and recall, those of `names`.

    A study whose answers cannot be read, twice, has no score; the protocol says how many those are.

    Raises:
        MissingWeights: no judge was named, it cannot be reached, or none of its answers can be read.
        ValueError: texts that are not in pairs.
    """
    check_pairs(predictions, references)
    if judge is None:
        raise MissingWeights("no judge was named: a model behind an endpoint of yours (--judge_url, --judge_model)")
    result = ClinicalResult()
    pairs = list(zip(predictions, references, strict=True))
    for name, one, columns in (
        ("judge_green", _green, {"judge_green": GREEN}),
        (
            "judge_radfact",
            _radfact,
            {
                "judge_radfact_precision": RADFACT.format("prediction's", "reference"),
                "judge_radfact_recall": RADFACT.format("reference's", "predicted"),
                "judge_radfact": "harmonic mean of judge_radfact_precision and judge_radfact_recall",
            },
        ),
    ):
        if name not in names:
            continue
        values = np.array(_judged(judge, one, pairs)).reshape(len(pairs), -1)
        failed = int(np.isnan(values).any(axis=1).sum())
        if pairs and failed == len(pairs):
            raise MissingWeights(f"{name}: none of the answers of {judge.model} can be read as what it was asked for")
        how = f"judged by {judge.model} at temperature 0 with prompts of hf_medvlm, not to be held against other judges"
        how += f"; {failed} of {len(pairs)} studies without a readable answer are left out" if failed else ""
        for column, (score_name, formula) in enumerate(columns.items()):
            each = values[:, column]
            result.add(score_name, np.nanmean(each) if len(each) else np.nan, f"{formula}; {how}", each.tolist())
    return result


def _judged(judge: Judge, one: Callable[[Judge, str, str], Any], pairs: Sequence[tuple[str, str]]) -> list[Any]:
    """`one` of each pair, several at a time, each different pair once."""
    different = list(dict.fromkeys(pairs))
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            answers = dict(zip(different, pool.map(lambda pair: one(judge, *pair), different), strict=True))
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            reason = getattr(error, "reason", None) or error
            raise MissingWeights(f"the judge at {judge.url} does not answer ({reason})") from error
    return [answers[pair] for pair in pairs]


def _green(judge: Judge, prediction: str, reference: str) -> float:
    def read(answer: dict[str, Any]) -> float:
        matched = _count(answer["matched_findings"])
        errors = sum(_count(answer["significant_errors"].get(letter, 0)) for letter in ERRORS)
        return matched / (matched + errors) if matched else 0.0

    return _answer(judge, _filled(GREEN_PROMPT, reference=reference, prediction=prediction), read)


def _radfact(judge: Judge, prediction: str, reference: str) -> tuple[float, float, float]:
    precision, recall = _entailed(judge, prediction, reference), _entailed(judge, reference, prediction)
    if math.isnan(precision) or math.isnan(recall):
        return (math.nan,) * 3
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _entailed(judge: Judge, text: str, other: str) -> float:
    """The share of a text's sentences that follow from another text; 0 of an empty text."""
    claims = sentences(text)
    if not claims:
        return 0.0

    def read(answer: dict[str, Any]) -> float:
        values = answer["entailed"]
        if len(values) != len(claims) or not all(isinstance(value, bool) for value in values):
            raise ValueError("not one true or false for each sentence")
        return sum(values) / len(values)

    numbered = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(claims, start=1))
    return _answer(judge, _filled(RADFACT_PROMPT, other=other, sentences=numbered), read)


def _filled(prompt: str, **texts: str) -> str:
    """The prompt with each `{name}` replaced by its text; nothing that a report holds is replaced again."""
    return re.sub(r"\{(" + "|".join(texts) + r")\}", lambda hole: texts[hole[1]], prompt)


def _answer(judge: Judge, prompt: str, read: Callable[[dict[str, Any]], float]) -> float:
    """What `read` finds in the JSON object of the judge's answer; NaN where no answer can be read."""
    for _ in range(TRIES):
        match = re.search(r"\{.*\}", judge.ask(prompt), re.DOTALL)
        try:
            return read(json.loads(match.group() if match else ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return math.nan


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise ValueError(f"{value!r:.100} is no count")
    return int(value)


class Metric(InMemory, evaluate.Metric):
    """`metrics.load(name, judge=Judge(url, model)).compute(predictions=texts, references=texts)`, as in `score`."""

    def __init__(self, config_name: str = "judge_green", judge: Judge | None = None, **options: Any) -> None:
        self.judge = judge
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return text_pairs_info(__doc__)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.judge, [self.config_name or "judge_green"])
        return result.values | {"protocol": result.facts[self.config_name or "judge_green"].protocol}
