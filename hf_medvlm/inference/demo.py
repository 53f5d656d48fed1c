"""A page on this machine where one drops a radiograph and sees what a model makes of it.

Python's own server and one page of ours: nothing is fetched, sent or stored. It answers on the loopback alone, to its
own page alone, and refuses what is too large before it reads it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import secrets
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.inference.drawing import heat, peak_and_box
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.inference.search import Index

HOST = "127.0.0.1"
MOST_BYTES, MOST_PIXELS = 64 << 20, 50_000_000
"""Of an upload; the largest radiographs have some 20 million pixels and, uncompressed, 40 MB."""
MOST_TEXT = 2000  # characters of a question or a phrase
KEPT = 16  # pictures that can still be asked about
SHOWN_SIDE, MAP_SIDE, MAPS, NEIGHBOURS = 1024, 256, 4, 6


class Refused(ValueError):
    """What the page is told in one sentence."""


class Demo:
    """What the page can ask of a model, without a server around it.

    Args:
        index: shows the nearest studies; it must have been made by the same weights.

    Raises:
        ValueError: an index of another model.
    """

    def __init__(self, predictor: Predictor, index: Index | None = None) -> None:
        if index is not None:
            index.check_model(predictor)
        self.predictor, self.index = predictor, index
        self._pictures: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def abilities(self) -> dict[str, Any]:
        """What the page shows fields for."""
        return {
            "family": self.predictor.family,
            "model": "/".join(self.predictor.folder.absolute().parts[-2:]),  # of runs/train_medklip/1 the 1 says little
            "ask": "ask" in self.predictor.abilities,
            "ground": "ground" in self.predictor.abilities,
        }

    def look(self, data: bytes) -> dict[str, Any]:
        """Everything that the model says of an uploaded picture unasked.

        Raises:
            Refused: no picture, a broken one, or one that is too large.
        """
        check_pixels(data)
        try:
            picture = open_radiograph(io.BytesIO(data))
        except ValueError as error:
            raise Refused(f"This file cannot be read: {_plain(error)}.") from error
        can, model = self.predictor.abilities, self.predictor
        shown: dict[str, Any] = {"id": self._keep(picture), "width": picture.width, "height": picture.height}
        shown["image"] = _data_url(_shrunk(picture, SHOWN_SIDE), "JPEG")
        if "report" in can:
            shown["report"] = model.report(picture)
            if "ground" in can:
                phrases = model.shown_phrases({"prediction": shown["report"]}, MAPS)
                shown["maps"] = [self._map(picture, phrase) for phrase in phrases]
        if "findings" in can:
            likely = model.findings(picture)
            limits = model.thresholds
            shown["findings"] = [
                {"name": name, "probability": p, "present": bool(p > limits.get(name, 0.5))}
                for name, p in sorted(likely.items(), key=lambda pair: -pair[1])
            ]
            if "ground" in can:
                described = {
                    "probabilities": likely,
                    "findings_prediction": {f["name"]: int(f["present"]) for f in shown["findings"]},
                }
                phrases = model.shown_phrases(described, MAPS)
                shown["maps"] = [self._map(picture, phrase) for phrase in phrases]
        if self.index is not None and "embed" in can:
            rows = self.index.nearest(model.embed([picture]), NEIGHBOURS, model.device)[0]
            shown["neighbours"] = [self._neighbour(hit) for hit in self.index.hits(rows)]
        return shown

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question about a picture that was looked at."""
        return {"answer": self.predictor.ask(self._kept(request), _text(request, "question"))}

    def ground(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The map of a phrase over a picture that was looked at."""
        return self._map(self._kept(request), _text(request, "phrase"))

    def _map(self, picture: Image.Image, phrase: str) -> dict[str, Any]:
        grid = self.predictor.ground(picture, phrase)
        peak = peak_and_box(grid)["peak"]
        step = max(1, -(-max(grid.shape) // MAP_SIDE))
        return {
            "name": phrase,
            "peak": peak,
            "image": _data_url(heat(np.ascontiguousarray(grid[::step, ::step])), "PNG"),
        }

    def _neighbour(self, hit: Any) -> dict[str, Any]:
        record = {"study_id": hit.study_id, "score": hit.score, "image": ""}
        try:
            return record | {"image": _data_url(self.index.thumbnail(hit), "JPEG")}  # type: ignore[union-attr]
        except ValueError:
            return record  # the page says that its picture is gone

    def _keep(self, picture: Image.Image) -> str:
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._pictures[name] = picture
            while len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return name

    def _kept(self, request: Mapping[str, Any]) -> Image.Image:
        with self._lock:
            picture = self._pictures.get(str(request.get("id")))
        if picture is None:
            raise Refused("This radiograph is not kept any more; drop it again.")
        return picture


def check_pixels(data: bytes) -> None:
    """Raise `Refused` for a picture that is too large, from its head alone."""
    width = height = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError as error:
        raise Refused(f"This picture is too large; up to {MOST_PIXELS:,} pixels are read.") from error
    except Exception:  # no picture that Pillow knows; perhaps DICOM
        import pydicom

        try:
            tags = ["Rows", "Columns"]
            header = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=tags)
            width, height = int(header.get("Columns") or 0), int(header.get("Rows") or 0)
        except Exception:  # neither; reading it says what is wrong
            return
    if width * height > MOST_PIXELS:
        raise Refused(
            f"This picture has {width:,} x {height:,} pixels; up to {MOST_PIXELS:,} are read. Make a smaller copy."
        )


def _text(request: Mapping[str, Any], name: str) -> str:
    text = request.get(name)
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"Write a {name} first.")
    if len(text) > MOST_TEXT:
        raise Refused(f"The {name} has {len(text):,} characters; up to {MOST_TEXT:,} are read.")
    return text.strip()


def _plain(error: Exception) -> str:
    """The reason without the object's own name in front."""
    return re.sub(r"^<[^>]*>: ", "", str(error)).rstrip(".")


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    return small


def _data_url(picture: Image.Image, kind: str) -> str:
    handle = io.BytesIO()
    picture.save(handle, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(handle.getvalue()).decode()}"


# -- the server --------------------------------------------------------------------------------------------------------


def make_server(demo: Demo, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback; `serve_forever()` runs it. Port 0 takes a free one: see `server_port`.

    Raises:
        OSError: the port is taken.
    """
    page, policy = _page(demo)

    class Handler(_Handler):
        pass

    Handler.demo, Handler.page, Handler.policy = demo, page, policy
    server = ThreadingHTTPServer((HOST, port), Handler)
    server.daemon_threads = True
    return server


def _page(demo: Demo) -> tuple[bytes, str]:
    """The page, and the policy by which it may run its own script and fetch from nowhere but here."""
    assets = files("hf_medvlm.inference").joinpath("demo_assets")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("demo.css", "demo.js"))
    able = json.dumps(demo.abilities()).replace("<", "\\u003c")
    parts = {"css": style, "js": script, "able": able}
    template = assets.joinpath("demo.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole.group(1)], template)
    policy = (
        "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return page.encode(), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
    demo: Demo
    page: bytes
    policy: str
    server_version, sys_version = "hf_medvlm", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection that says nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: file names may name patients."""

    def do_GET(self) -> None:
        if not self._is_ours():
            self._send(403, {"error": "This page answers to itself alone."})
        elif self.path == "/":
            self._send_bytes(200, self.page, "text/html; charset=utf-8")
        else:
            self._send(404, {"error": "There is nothing here."})

    def do_POST(self) -> None:
        calls = {"/look": self.demo.look, "/ask": self._json(self.demo.ask), "/ground": self._json(self.demo.ground)}
        if not self._is_ours():
            return self._send(403, {"error": "This page answers to itself alone."}, close=True)
        if self.path not in calls:
            return self._send(404, {"error": "There is nothing here."}, close=True)
        length = self.headers.get("Content-Length", "")
        limit = MOST_BYTES if self.path == "/look" else 1 << 16
        if not length.isdigit() or int(length) > limit:
            reason = f"This file is larger than {limit >> 20} MB." if self.path == "/look" else "This is too long."
            return self._send(413, {"error": reason}, close=True)
        body = self.rfile.read(int(length))
        try:
            self._send(200, calls[self.path](body))
        except (ValueError, TypeError) as error:  # Refused among them
            self._send(422, {"error": _plain(error)})

    @staticmethod
    def _json(call: Any) -> Any:
        def decoded(body: bytes) -> dict[str, Any]:
            try:
                request = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise Refused("This is no JSON.") from error
            if not isinstance(request, dict):
                raise Refused("This is no JSON object.")
            return call(request)

        return decoded

    def _is_ours(self) -> bool:
        """Whether the request names this server and comes from its own page; other sites may not ask by a browser."""
        assert isinstance(self.server, HTTPServer)
        ours = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in ours and (origin is None or origin.removeprefix("http://") in ours)

    def _send(self, status: int, record: Mapping[str, Any], close: bool = False) -> None:
        if close:  # the body was not read
            self.close_connection = True
        self._send_bytes(status, json.dumps(record).encode(), "application/json")

    def _send_bytes(self, status: int, body: bytes, kind: str) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.policy,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
