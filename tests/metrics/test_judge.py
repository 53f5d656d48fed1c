"""Judges behind a local endpoint: the formulas by hand, what cannot be read, and where no report may go."""

from __future__ import annotations

import json
import socket

import pytest
from judge_server import judge_server

from hf_medvlm import metrics
from hf_medvlm.metrics.clinical import clinical_scores, what_is_missing
from hf_medvlm.metrics.clinical.judge import KEY, Judge, is_private

REFERENCES = ["There is an effusion. The heart is large.", "Lungs are clear.", "Lungs are clear. {prediction}"]
PREDICTIONS = ["There is an effusion. No edema.", "Lungs are clear.", "Edema."]
BOTH = ["judge_green", "judge_radfact"]


def test_scores_are_the_formulas_on_what_the_judge_counts(monkeypatch):
    monkeypatch.setenv(KEY, "sesame")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy of the environment would fail
    with judge_server() as (url, got):
        result, missing = clinical_scores(BOTH, PREDICTIONS, REFERENCES, judge=Judge(url, "local-model"))
        one = metrics.load("judge_green", judge=Judge(url, "m")).compute(predictions=["A."], references=["A."])
    assert not missing and one["judge_green"] == 1
    # one finding matched, one invented, one omitted; the nine errors that do not matter are not counted
    assert result.per_study["judge_green"] == pytest.approx([1 / 3, 1, 0])
    assert result.per_study["judge_radfact_precision"] == pytest.approx([1 / 2, 1, 0])
    assert result.per_study["judge_radfact_recall"] == pytest.approx([1 / 2, 1, 0])
    assert result.values["judge_radfact"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert "judged by local-model at temperature 0" in result.facts["judge_green"].protocol
    assert {request["path"] for request in got} == {"/v1/chat/completions"} and got[0]["key"] == "Bearer sesame"
    assert len(got) == 3 * 3 + 1 and all(request["temperature"] == 0 for request in got)


def test_answers_that_cannot_be_read_have_no_score_and_are_counted():
    def answer(prompt: str) -> str:
        clear = "Candidate report:\nLungs are clear." in prompt
        return json.dumps({"matched_findings": 1, "significant_errors": {"a": 1}}) if clear else "I think it is fine."

    with judge_server(answer) as (url, got):
        result, missing = clinical_scores(["judge_green"], PREDICTIONS, REFERENCES, judge=Judge(url, "m"))
    assert not missing and result.values["judge_green"] == pytest.approx(1 / 2)
    assert "2 of 3 studies without a readable answer are left out" in result.facts["judge_green"].protocol
    assert len(got) == 2 + 1 + 2  # asked twice where it could not be read
    for unread in (lambda prompt: "no JSON", lambda prompt: '{"matched_findings": "two", "significant_errors": {}}'):
        with judge_server(unread) as (url, _):
            result, missing = clinical_scores(BOTH[:1], PREDICTIONS, REFERENCES, judge=Judge(url, "m"))
        assert not result.values and "none of the answers" in missing["judge_green"]


@pytest.mark.parametrize("status", [500, 302, 404])
def test_a_judge_that_does_not_answer_is_a_missing_column(status):
    with judge_server(lambda prompt: status) as (url, got):
        result, missing = clinical_scores(BOTH, PREDICTIONS[:1], REFERENCES[:1], judge=Judge(url, "m"))
    assert not result.values and set(missing) == set(BOTH) and f"the judge at {url} does not answer" in missing[BOTH[0]]
    assert got  # and a redirect was not followed


def test_reports_go_to_no_hosted_address_unasked(monkeypatch):
    hosts = {"api.example.com": "93.184.216.34", "judge.hospital.example": "10.1.2.3"}
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *rest: real(hosts.get(host, host), port, *rest))
    for url in ("https://api.example.com/v1", "http://8.8.8.8/v1"):
        with pytest.raises(
            ValueError, match="outside this machine and its private network.*--judge_hosted_acknowledged"
        ):
            Judge(url, "m")
        assert Judge(url, "m", hosted_acknowledged=True)
    for host in ("127.0.0.1", "::1", "10.1.2.3", "192.168.0.4", "judge.hospital.example"):
        assert is_private(host)
    for url in ("localhost:8000", "file:///etc/passwd", "http:///v1"):
        with pytest.raises(ValueError, match="name an address such as"):
            Judge(url, "m")
    with pytest.raises(ValueError, match="--judge_model"):
        Judge("http://127.0.0.1/v1", "")


def test_without_a_judge_the_metrics_are_missing():
    result, missing = clinical_scores(BOTH, ["a"], ["a"])
    assert not result.values and all("--judge_url" in reason for reason in missing.values())
    assert what_is_missing(BOTH, has_judge=True) == dict.fromkeys(BOTH, "")
