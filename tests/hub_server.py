"""A small Hub of the tests' own, over real HTTP: what huggingface_hub needs to make, fill and read a model repository.

It speaks the Hub's public API: repos/create, preupload, git-LFS batch and upload, commit, resolve, model info, tree.
`HubServer.repos` is what arrived; `HubServer.requests` is who asked for what.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
USER = "tester"


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url` until the block ends."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  # git-LFS objects by SHA-256
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str) -> dict[str, str]:
        """Variables under which a process talks to this Hub and to no other. Xet is a service apart; LFS stands in."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": home,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path))
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if method == "PUT" and parts[0] == "lfs":
            self.hub.stored[parts[1]] = self.body
            return self._json({})
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch()
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
        return self._error(404, "EntryNotFound")

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _whoami(self) -> None:
        if not self._known:
            return self._error(401, "Unauthorized")
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def _create(self) -> None:
        if not self._known:
            return self._error(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        private = asked.get("private", asked.get("visibility") == "private")
        taken = name in self.hub.repos
        self.hub.repos.setdefault(name, Repo(private))
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, status=409 if taken else 200)

    def _api(self, name: str, rest: list[str]) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known):
            return self._error(404, "RepoNotFound")
        if rest[:1] == ["preupload"]:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(self.body)["files"]
            ]
            return self._json({"files": modes})
        if rest[:1] == ["commit"]:
            return self._commit(name, repo)
        if rest[:1] == ["tree"]:
            return self._tree(repo, "/".join(rest[2:]))
        siblings = [{"rfilename": file} for file in sorted(repo.files)]
        info = {"_id": "0", "id": name, "modelId": name, "private": repo.private, "sha": repo.sha}
        self._json(info | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _commit(self, name: str, repo: Repo) -> None:
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "header":
                repo.commits.append(value["summary"])
        self._json({"success": True, "commitOid": repo.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{repo.sha}"})

    def _lfs_batch(self) -> None:
        objects = [
            {**thing, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{thing['oid']}", "header": {}}}}
            for thing in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _tree(self, repo: Repo, folder: str) -> None:
        inside = [f for f in sorted(repo.files) if not folder or f.startswith(f"{folder}/")]
        if folder and not inside:
            return self._error(404, "EntryNotFound")
        entries = [{"type": "file", "path": f, "size": len(repo.files[f]), "oid": _sha(repo.files[f])} for f in inside]
        self._json(entries)

    def _resolve(self, name: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known):
            return self._error(404, "RepoNotFound")
        if path not in repo.files:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": repo.sha})
        content = repo.files[path]
        self._send(200, content, {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": repo.sha})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} | (headers or {})
        self._send(status, json.dumps({"error": code}).encode(), named)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
