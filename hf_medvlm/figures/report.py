"""`report.html`: one self-contained page of a run, from its folder alone; its look and life are in report_assets/.

Nothing in it comes from a network, and nothing a report or a file name says can run: texts reach the page as JSON with
every `<` escaped, are set as text, and the page's own script is the only one its content security policy lets run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.figures.report_data import Page, collect
from hf_medvlm.figures.results import load_run

SCRIPTS = ("charts.js", "scores.js", "studies.js")
IMAGES = "report_images"
CHUNK = 64  # pictures in one script element; studies.js counts on it
MOST_INLINE_BYTES = 36_000_000
"""Pictures beyond this many bytes of JPEG go into a folder beside the page; in base64 they are a third larger."""


def write_report(output_dir: str | Path) -> Path:
    """Write `report.html` into the run's folder, and a `report_images` folder where the pictures are too many for it.

    Returns:
        The page's path.

    Raises:
        ValueError: `output_dir` holds no run.
    """
    run = load_run(output_dir)
    page = collect(run)
    path = run.folder / "report.html"
    sources = _picture_sources(page, run.folder / IMAGES)
    style, script = _asset("report.css"), "".join(_asset(name) for name in SCRIPTS)
    parts = {
        "css": style,
        "css_hash": _hash(style),
        "js": script,
        "js_hash": _hash(script),
        "head": _json(page.head),
        "studies": _json(page.studies),
        "blobs": "".join((*_chunks("images", sources), *_chunks("maps", page.maps))),
    }
    template = _asset("report.html")
    with atomic_open(path) as handle:
        # One pass, so that what is filled in is never filled in again.
        handle.write(re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole.group(1)], template))
    return path


def _picture_sources(page: Page, folder: Path) -> list[str]:
    """What the page puts into `src`: the picture itself, or its place in `folder`, which otherwise is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    if sum(len(jpeg or b"") for jpeg in page.jpegs) <= MOST_INLINE_BYTES:
        return ["data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else "" for jpeg in page.jpegs]
    folder.mkdir()
    sources = []
    for number, jpeg in enumerate(page.jpegs):
        name = f"{number:06d}.jpg"  # numbered: the corpus's own names may hold anything
        if jpeg:
            (folder / name).write_bytes(jpeg)
        sources.append(f"{IMAGES}/{name}" if jpeg else "")
    return sources


def _chunks(kind: str, blobs: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(blobs), CHUNK):
        packed = _json(blobs[start : start + CHUNK])
        yield f'<script type="application/json" id="{kind}-{start // CHUNK}">{packed}</script>\n'


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: no `<` (so no `</script>` and no `<!--`), no NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (files("hf_medvlm.figures") / "report_assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names one inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
