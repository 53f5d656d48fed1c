"""The page of a comparison: the metrics of all runs, then the studies that became better and worse, with both texts."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import atomic_open
from hf_medvlm.figures.comparison import Comparison, better, in_words
from hf_medvlm.figures.heatmaps import image_paths, mapped_image, open_image
from hf_medvlm.figures.marks import mark
from hf_medvlm.figures.results import Run

PAGE = "comparison.html"
EACH = 12  # studies that became better, and as many that became worse, for each further run
SIDE = 320  # pixels of a radiograph's longer side


def write_page(compared: Comparison, folder: str | Path) -> Path:
    """Write `comparison.html`: one file, in which nothing runs and which fetches nothing."""
    parts = {
        "style": (files("hf_medvlm.figures") / "report_assets" / "report.css").read_text(encoding="utf-8"),
        "title": escape(" and ".join(compared.names)),
        "count": f"{len(compared.lines[0]):,} studies of {_patients(compared):,} patients",
        "first": escape(compared.names[0]),
        "metrics": _metrics(compared),
        "studies": "".join(_changed(compared, number) for number in range(len(compared.gains))),
    }
    path = Path(folder) / PAGE
    with atomic_open(path) as handle:
        handle.write(re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole.group(1)], TEMPLATE))
    return path


def _patients(compared: Comparison) -> int:
    return len({str(line.get("patient_id") or line["study_id"]) for line in compared.lines[0]})


def _metrics(compared: Comparison) -> str:
    heads = [
        "Score (open for its protocol)",
        *compared.names,
        *(f"{n} less {compared.names[0]}" for n in compared.names[1:]),
    ]
    rows = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for metric in compared.metrics:
        protocol = compared.runs[0].fact(metric.name).protocol
        name = escape(metric.name)
        name = f"<details><summary>{name}</summary><p>{escape(protocol)}</p></details>" if protocol else name
        cells = [name, *(f"{value:.3f}" for value in metric.values)]
        for number, test in enumerate(metric.tests):
            verdict = better(compared, metric, number)
            colour = {"better": "agree", "worse": "contradict"}.get(verdict)
            cells.append(escape(in_words(test)) + (f' <b class="is-{colour}">{verdict}</b>' if colour else ""))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _changed(compared: Comparison, number: int) -> str:
    """The studies that further run `number` does best and worst on, beside the first run."""
    gains = compared.gains[number]
    order = sorted(range(len(gains)), key=lambda row: gains[row], reverse=True)
    up, down = [row for row in order if gains[row] > (0, 0)], [row for row in order[::-1] if gains[row] < (0, 0)]
    name = escape(compared.names[number + 1])
    same = len(gains) - len(up) - len(down)
    parts = [f"<h2>{name}: {len(up)} studies became better, {len(down)} worse, {same} neither</h2>"]
    for title, rows in (("better", up), ("worse", down)):
        parts.append(f"<h3>The {min(EACH, len(rows))} studies that became {title} most</h3>" if rows else "")
        parts += [_study(compared, row, number + 1) for row in rows[:EACH]]
    return "".join(parts)


def _study(compared: Comparison, row: int, other: int) -> str:
    lines = [(compared.names[place], compared.lines[place][row]) for place in (0, other)]
    reference = lines[0][1]
    states = reference.get("findings_reference") or {}
    sides = [f"<div><h4>Reference</h4><div class='text'>{escape(str(reference.get('reference') or ''))}</div></div>"]
    for name, line in lines:
        sides.append(
            f"<div><h4>{escape(name)}</h4><div class='text'>{_marked(line, states)}</div>{_values(line)}</div>"
        )
    head = f"<h3>{escape(str(reference['study_id']))}</h3>"
    picture = _picture(compared.runs[0], reference)
    return f'<article class="card study">{picture}<div>{head}<div class="texts">{"".join(sides)}</div></div></article>'


def _marked(line: Mapping[str, Any], states: Mapping[str, int | None]) -> str:
    """A run's text with its sentences marked, or its answers to each finding where it wrote none."""
    likely = line.get("probabilities") or {}
    if likely:
        shown = sorted(likely, key=lambda name: -likely[name])[:6]
        return "<br>".join(f"{escape(name)} {likely[name]:.2f} ({_state(states.get(name))})" for name in shown)
    text = str(line.get("prediction") or "")
    segments = mark(text, states, is_reference=False) if states else [(text, "", "")]
    parts = [
        f'<mark class="{how}" title="{escape(why)}">{escape(piece)}</mark>' if how else escape(piece)
        for piece, how, why in segments
    ]
    return "".join(parts) or '<span class="muted">no text</span>'


def _state(state: int | None) -> str:
    return {1: "reference: present", 0: "reference: absent", -1: "reference: uncertain"}.get(state, "not labelled")  # type: ignore[arg-type]


def _values(line: Mapping[str, Any]) -> str:
    known = {name: value for name, value in (line.get("scores") or {}).items() if isinstance(value, (int, float))}
    likely = line.get("probabilities") or {}
    shown = [f"<span>{escape(name)} {value:.3g}</span>" for name, value in known.items() if name not in likely]
    return f'<div class="values">{"".join(shown[:8])}</div>'


def _picture(run: Run, line: Mapping[str, Any]) -> str:
    paths = image_paths(line)
    if not paths:
        return '<p class="muted">no image</p>'
    try:
        picture = open_image(run, paths[min(mapped_image(line), len(paths) - 1)])
    except ValueError as error:
        return f'<p class="muted">{escape(str(error).replace(f"{run.image_folder}/", ""))}</p>'
    picture.thumbnail((SIDE, SIDE))
    handle = io.BytesIO()
    picture.save(handle, "JPEG", quality=80)
    data = base64.b64encode(handle.getvalue()).decode()
    return f'<img alt="radiograph of {escape(str(line["study_id"]))}" src="data:image/jpeg;base64,{data}">'


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{title}} · hf_medvlm</title>
<style>{{style}}
.study img { width: 100%; background: #000; border-radius: 6px; }
@media (min-width: 900px) { .texts { grid-template-columns: repeat(3, 1fr); } }
</style>
</head>
<body>
<header class="top"><div class="wrap"><p class="kicker">hf_medvlm comparison</p><h1>{{title}}</h1>
<p class="muted">{{count}}, the same for all runs</p>
<p class="notice">It suggests, never decides. Not a medical device; not for diagnosis or treatment.</p></div></header>
<main class="wrap">
<h2>Which is better, and is it chance?</h2>
<div class="card scroll">{{metrics}}
<p class="muted">Differences are to {{first}}, with the 95 % interval of a bootstrap that draws patients
and the p-value of random swaps of whole patients.
Each row is a test of its own: of twenty rows one lies below 0.05 by chance.</p></div>
{{studies}}
<p class="muted">studies.csv beside this page has every study.</p>
</main>
</body>
</html>
"""
