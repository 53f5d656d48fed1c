"""A local endpoint that speaks chat completions and judges by comparing sentences word for word."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=\.)\s+", text.strip()) if part.strip()]


def judge(prompt: str) -> str:
    """What a judge would answer that takes only the same sentence for the same finding."""
    if "Candidate report:" in prompt:
        reference, candidate = prompt.split("Reference report:\n")[1].split("\n\nCandidate report:\n")
        claimed, true = set(sentences(candidate)), set(sentences(reference))
        errors = {"a": len(claimed - true), "b": len(true - claimed)}
        answer = {
            "matched_findings": len(claimed & true),
            "significant_errors": errors,
            "insignificant_errors": {"c": 9},
        }
        return f"Here it is:\n```json\n{json.dumps(answer)}\n```"
    other, numbered = prompt.split("Other report:\n")[1].split("\n\nSentences:\n")
    lines = [line.partition(". ")[2] for line in numbered.splitlines()]
    return json.dumps({"entailed": [line in sentences(other) for line in lines]})


@contextmanager
def judge_server(answer=judge) -> Iterator[tuple[str, list[dict]]]:
    """(url, the requests it got) of a server whose answers are `answer(prompt)`; an int is sent as an HTTP status."""
    got: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append(request | {"path": self.path, "key": self.headers.get("Authorization")})
            reply = answer(request["messages"][0]["content"])
            status = reply if isinstance(reply, int) else 200
            body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode() if status == 200 else b"{}"
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "http://example.org/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", got
    finally:
        server.shutdown()
        server.server_close()
