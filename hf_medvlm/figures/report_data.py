"""A run as the plain data that the report page shows: scores, curves, findings, studies. Knows no HTML.

What is large (pictures and heat maps) stands apart as `blobs`, which the page unpacks when it comes to them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hf_medvlm.figures.bars import best_baselines, findings_table
from hf_medvlm.figures.confusion import confusion_matrices
from hf_medvlm.figures.curves import group_axis, loss_series, schedule_series, validation_series
from hf_medvlm.figures.heatmaps import image_paths, mapped_image, open_image
from hf_medvlm.figures.marks import agreement, compare, mark
from hf_medvlm.figures.results import Run, is_number
from hf_medvlm.figures.roc import roc_curves
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.metrics.clinical import missing_lines
from hf_medvlm.metrics.facts import HIGHER, NEITHER
from hf_medvlm.metrics.names import in_words

IMAGE_SIDE, SMALL_SIDE, MANY_STUDIES = 512, 320, 500
"""Pixels of the longer side, and of the longer side where a report holds `MANY_STUDIES` or more."""
MAP_SIDE = 32
MOST_POINTS = 400  # of a curve: more cannot be seen on a screen
RUN_KEYS = """model_class dataset sources licences split_sizes patients rejected parameters trainable_parameters steps
    epochs created train_seconds evaluate_seconds seconds commit seed device processes command hf_medvlm python versions
    data_hash""".split()
EXAMPLES = 3  # of each kind of error
HIGHLIGHTS = 3  # best, worst and typical studies each


@dataclass
class Page:
    """`head` is all but the studies; `studies` refer to `jpegs` (None where unreadable) and `maps` by index."""

    head: dict[str, Any]
    studies: list[dict[str, Any]] = field(default_factory=list)
    jpegs: list[bytes | None] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)


def collect(run: Run) -> Page:
    """Everything the page shows. Images are read in parallel; one that cannot be read is shown by its reason."""
    page = Page(_head(run))
    paths = list(dict.fromkeys(path for p in run.predictions for path in image_paths(p)))
    side = IMAGE_SIDE if len(run.predictions) < MANY_STUDIES else SMALL_SIDE
    pictures = dict(zip(paths, _read_images(run, paths, side), strict=True))
    places = {path: place for place, path in enumerate(paths)}
    page.jpegs = [pictures[path][0] for path in paths]
    page.head["references"] = any(map(_has_reference, run.predictions))
    for number, prediction in enumerate(run.predictions):
        study = _study(number, prediction, page.maps)
        views = _views(prediction)
        study["images"] = [
            {"view": view, "blob": places[path], "size": pictures[path][1], "broken": pictures[path][2]}
            for path, view in zip(image_paths(prediction), views, strict=True)
        ]
        study["views"] = sorted({*filter(None, views), str(prediction.get("view") or "")} - {""}) or ["unknown"]
        page.studies.append(study)
    _pick_highlights(page, run)
    page.head["words"] = _names_in_words(page, run)
    return page


def _names_in_words(page: Page, run: Run) -> dict[str, str]:
    """Every name of a score that the page shows, and the words for it."""
    names = {*run.metrics, *run.baselines, *page.head["audit"]["kinds"], *page.head["info"], "agreement"}
    names |= {name for study in page.studies for name in study["scores"]}
    return {name: in_words(name) for name in sorted(names)}


def _has_reference(prediction: Mapping[str, Any]) -> bool:
    """False for what was predicted of new images, which there is nothing to hold against."""
    return "reference" in prediction or "findings_reference" in prediction


def _head(run: Run) -> dict[str, Any]:
    info = run.info
    stated = {key: info[key] for key in RUN_KEYS if info.get(key) not in (None, "", {}, [])}
    baselines = best_baselines(run)
    rows: dict[str, list] = {title: [] for title in run.groups()}
    for name, value in run.metrics.items():
        if "/" in name:
            continue
        fact = run.fact(name)
        rows[fact.group].append(
            {
                "name": name,
                "value": value if is_number(value) else None,
                "interval": run.intervals.get(name),
                "baselines": baselines[name],
                "protocol": fact.protocol,
                "better": fact.better,
                "unit": fact.unit,
                "fraction": is_number(value) and run.in_unit_range(name),
            }
        )
    per_finding = [{"name": name} | _finite(row) for name, row in findings_table(run).items()]
    return {
        "title": info.get("recipe") or run.folder.resolve().name,
        "info": stated,
        "split": run.split,
        "n": run.n if run.n is not None else len(run.predictions) or None,
        "groups": [{"title": title, "rows": listed} for title, listed in rows.items() if listed],
        "baselines": list(run.baselines),
        "missing": [*missing_lines(run.figures), *filter(None, [run.figures.get("without_maps")])],
        "curves": [
            {"title": "Loss", "x": "optimisation step", "y": "loss (nats)", "series": _thin(loss_series(run))},
            *(
                {"title": title, "x": "optimisation step", "y": group_axis(title, run), "series": _thin(series)}
                for title, series in validation_series(run).items()
            ),
            *(
                {"title": name, "x": "optimisation step", "y": name, "series": _thin({name: points})}
                for name, points in {"learning rate": run.series("learning_rate"), **schedule_series(run)}.items()
                if points[0]
            ),
            *(
                {"title": title, "x": c["x_label"], "y": c["y_label"], "series": _thin(_pairs(c))}
                for title, c in (run.figures.get("curves") or {}).items()
            ),
        ],
        "per_finding": per_finding,
        "audit": _audit(run),
        "roc": {name: _thin({"": (c["fpr"], c["tpr"])})[0] | {"auc": c["auc"]} for name, c in roc_curves(run).items()},
        "confusion": [{"title": title} | matrix for title, matrix in confusion_matrices(run).items()],
    }


def _audit(run: Run) -> dict[str, Any]:
    """What reports get wrong: a row a finding with [rate, errors, of, low, high] of each kind, and examples of each."""
    table = run.figures.get("audit") or {}
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    cells = ("rate", "errors", "of", "low", "high")
    examples: dict[str, list[dict[str, Any]]] = {}
    for prediction in run.predictions:
        for error in prediction.get("audit") or []:
            listed = examples.setdefault(str(error.get("kind")), [])
            if len(listed) < EXAMPLES:
                listed.append({"study": str(prediction.get("study_id", ""))} | dict(error))
    return {
        "kinds": kinds,
        "rows": [
            {"name": name} | {kind: [_finite(row[kind]).get(cell) for cell in cells] for kind in row}
            for name, row in table.items()
        ],
        "examples": examples,
    }


def _pairs(curve: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    return {name: (curve["x"], values) for name, values in curve["y"].items()}


def _thin(series: Mapping[str, tuple[list[float], list[float]]]) -> list[dict[str, Any]]:
    """At most `MOST_POINTS` of each curve, evenly chosen, the first and the last among them."""
    thinned = []
    for name, (xs, ys) in series.items():
        points = [(x, float(f"{y:.5g}")) for x, y in zip(xs, ys, strict=True) if is_number(x) and is_number(y)]
        keep = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
        thinned.append({"name": name, "x": [points[i][0] for i in keep], "y": [points[i][1] for i in keep]})
    return thinned


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if is_number(value) else None for key, value in row.items()}


def _study(number: int, prediction: Mapping[str, Any], maps: list[str]) -> dict[str, Any]:
    reference, predicted = (prediction.get(f"findings_{side}") or {} for side in ("reference", "prediction"))
    margins = prediction.get("zero_shot") or {}
    if not predicted:  # a margin above 0 says present
        predicted = {name: int(margin > 0) for name, margin in margins.items()}
    texts = [str(prediction.get(side) or "") for side in ("reference", "prediction")]
    asked = "zero_shot" in prediction
    scores = _finite(prediction.get("scores") or {})
    names = {*CHEXPERT_14, *reference, *predicted}
    asked = asked or not texts[1] or not names.isdisjoint(scores)  # a classifier: it says nothing of other findings
    if asked:
        reference = {name: state for name, state in reference.items() if name in predicted}
    relations = compare(reference, predicted, labelled_only=asked) if _has_reference(prediction) else {}
    likely = prediction.get("probabilities") or {n: v for n, v in scores.items() if n in names and v is not None}
    if not likely:  # of zero-shot margins: a softmax over the two sides
        likely = {name: 1 / (1 + math.exp(-max(-50.0, margin))) for name, margin in margins.items()}
    study_scores = {name: value for name, value in scores.items() if name not in names and value is not None}
    changes = _changes(prediction)
    share = agreement(relations | {name: how for name, _, _, how in changes})
    if share is not None:
        study_scores = {"agreement": share} | study_scores
    return {
        "number": number,
        "id": str(prediction.get("study_id", number)),
        "patient": str(prediction.get("patient_id") or ""),
        "reference": mark(texts[0], predicted, is_reference=True) if predicted else [(texts[0], "", "")],
        "prediction": mark(texts[1], reference, is_reference=False) if reference else [(texts[1], "", "")],
        "findings": [[n, reference.get(n), predicted.get(n), how] for n, how in relations.items()] + changes,
        "said": [[n, state] for n, state in predicted.items() if state and not _has_reference(prediction)],
        "question": str(prediction.get("question") or ""),
        "likely": sorted(([n, float(f"{v:.4g}")] for n, v in likely.items()), key=lambda pair: -pair[1]),
        "scores": {name: float(f"{value:.4g}") for name, value in study_scores.items()},
        "boxes": [
            {"image": b.get("image", 0), "xywh": b["xywh"], "name": b.get("finding") or b.get("phrase") or ""}
            for b in prediction.get("boxes") or []
        ],
        "maps": [_pack_map(name, values, maps) for name, values in (prediction.get("maps") or {}).items()],
        "map_image": mapped_image(prediction),
    }


def _changes(prediction: Mapping[str, Any]) -> list[list[str]]:
    """[finding over time, reference, prediction, relation] for a model that tells progression."""
    predicted, true = (prediction.get(f"progression_{side}") or {} for side in ("prediction", "reference"))
    return [
        [f"{name} over time", true[name], predicted[name], "agree" if true[name] == predicted[name] else "contradict"]
        for name in predicted
        if name in true
    ]


def _views(prediction: Mapping[str, Any]) -> list[str]:
    """The view of each image; the study's own `view` is that of its only image, and of several is only a filter."""
    images = prediction.get("images") or []
    views = [image.get("view") if isinstance(image, Mapping) else None for image in images]
    if len(views) == 1:
        views = [views[0] or prediction.get("view")]
    return [str(view or "") for view in views]


def _pack_map(name: str, values: Any, maps: list[str]) -> dict[str, Any]:
    """A heat map, scaled to its own range, as base64 of one byte a cell; at most `MAP_SIDE` cells a side.

    Null, where the model has not looked, is shown as its lowest value is: not at all.
    """
    grid = np.atleast_2d(np.asarray(values, dtype=np.float32))
    seen = grid[np.isfinite(grid)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    grid = np.nan_to_num(grid, nan=low, posinf=high, neginf=low)
    picture = Image.fromarray(np.rint((grid - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    picture.thumbnail((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX)
    maps.append(base64.b64encode(picture.tobytes()).decode())
    return {"name": name, "blob": len(maps) - 1, "width": picture.width, "height": picture.height}


def _read_images(run: Run, paths: list[str], side: int) -> list[tuple[bytes | None, list[int] | None, str]]:
    """(JPEG or None, stored width and height or None, why it could not be read or "") of each path."""
    from tqdm import tqdm

    def read(path: str) -> tuple[bytes | None, list[int] | None, str]:
        try:
            image = open_image(run, path)
        except ValueError as error:
            return None, None, str(error).replace(f"{run.image_folder}/", "")
        size = list(image.size)
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
        handle = io.BytesIO()
        image.save(handle, "JPEG", quality=80, optimize=True)
        return handle.getvalue(), size, ""

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(read, paths), "Report images", len(paths), unit="image", disable=None))


def _pick_highlights(page: Page, run: Run) -> None:
    """Choose the score that ranks the studies; badge the best, the worst and the most typical."""
    names = [name for study in page.studies for name in study["scores"]]
    usual = [n for n in dict.fromkeys(names) if names.count(n) * 2 >= len(page.studies)]
    directed = [name for name in dict.fromkeys(names) if run.fact(name).better != NEITHER]
    page.head["score_names"] = [{"name": name, "up": run.fact(name).better == HIGHER} for name in directed]
    usual = [name for name in usual if name in directed]
    page.head["primary"] = usual[0] if usual else None
    if not usual:
        return
    sign = 1 if run.fact(usual[0]).better == HIGHER else -1

    def rank(study: dict[str, Any]) -> tuple[float, int, int]:
        """By the score; where it ties, the study that says more is the better example, whichever end it stands at."""
        value = sign * study["scores"][usual[0]]
        return value, len(study["findings"]), sum(len(text) for text, _, _ in study["reference"])

    ranked = sorted((s for s in page.studies if usual[0] in s["scores"]), key=rank, reverse=True)
    median = float(np.median([rank(study)[0] for study in ranked]))
    worst = sorted(ranked, key=lambda s: (rank(s)[0], -rank(s)[1], -rank(s)[2]))
    typical = sorted(ranked, key=lambda s: (abs(rank(s)[0] - median), -rank(s)[1]))
    page.head["highlights"] = []
    for badge, order in (("best", ranked), ("worst", worst), ("typical", typical)):
        for study in [s for s in order if "badge" not in s][:HIGHLIGHTS]:
            study["badge"] = badge
            page.head["highlights"].append(study["number"])
