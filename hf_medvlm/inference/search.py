"""The nearest studies of an index to a text or an image: exact, by blocks, on any device.

An index is what `predict_studies` leaves of a model with embeddings: `embeddings.safetensors`, a line a study in
`predictions.jsonl`, and the hash of the weights in `run.json`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from hf_medvlm.data.files import atomic_open, load_json
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.study import check_relative_path
from hf_medvlm.inference.predict import EMBEDDINGS, PREDICTIONS, RUN, model_hash
from hf_medvlm.inference.predictor import Predictor

BLOCK = 65_536  # rows compared at a time: 128 MiB of 512 numbers each
THUMBNAIL = 256


@dataclass(frozen=True)
class Hit:
    """A study that was found: `score` is the cosine, `image` the path of its frontal image or ""."""

    rank: int
    score: float
    study_id: str
    image: str


class Index:
    """An index on disk, of which no more than a block is in memory at a time.

    Raises:
        ValueError: the folder holds no finished index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        missing = [name for name in (RUN, EMBEDDINGS, PREDICTIONS) if not (self.folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} holds no index ({', '.join(missing)} is not there); make one with "
                f"`hf-medvlm index RUN IMAGES --out {folder}`, which goes on where it was interrupted"
            )
        self.info: dict[str, Any] = load_json(self.folder / RUN, dict)

    @property
    def model(self) -> str:
        """The run or checkpoint that made it."""
        return str(self.info["model"])

    def check_model(self, predictor: Predictor) -> None:
        """Raise `ValueError` unless the index was made with these very weights: others' numbers mean nothing here."""
        if model_hash(predictor.weights) != self.info["model_hash"]:
            raise ValueError(
                f"{self.folder} was made with other weights ({self.model}) than {predictor.folder} holds now; make "
                f"the index anew, or name the model that made it"
            )

    def nearest(
        self, queries: np.ndarray, top: int = 10, device: str | torch.device = "cpu"
    ) -> list[list[tuple[int, float]]]:
        """For each query the rows with the largest cosine, best first; of equal ones the earlier row.

        Args:
            queries: (Q, D), normalised.

        Returns:
            `top` pairs of row and cosine a query, or as many as there are rows.

        Raises:
            ValueError: embeddings of another width.
        """
        asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(device)
        best: list[list[tuple[float, int]]] = [[] for _ in asked]
        with safe_open(self.folder / EMBEDDINGS, framework="pt") as file:
            rows = file.get_slice("image_embeds")
            count, width = rows.get_shape()
            if width != asked.shape[1]:
                raise ValueError(f"{self.folder} holds embeddings of {width} numbers, the query has {asked.shape[1]}")
            for start in range(0, count, BLOCK):
                block = rows[start : min(start + BLOCK, count)].to(device)
                scores = asked @ block.mT.to(asked.dtype)  # (Q, rows)
                order = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
                values = scores.gather(1, order).tolist()
                for number, places in enumerate(order.tolist()):
                    found = [(-value, start + place) for place, value in zip(places, values[number], strict=True)]
                    best[number] = sorted(best[number] + found)[:top]
        return [[(row, -score) for score, row in found] for found in best]

    def hits(self, found: Sequence[tuple[int, float]]) -> list[Hit]:
        """The studies of rows that `nearest` gave."""
        wanted = {row for row, _ in found}
        lines: dict[int, dict[str, Any]] = {}
        with open(self.folder / PREDICTIONS, encoding="utf-8", newline="\n") as handle:
            for number, text in enumerate(handle):
                if number in wanted:
                    lines[number] = json.loads(text)
                    if len(lines) == len(wanted):
                        break
        hits = []
        for rank, (row, score) in enumerate(found, start=1):
            images = lines[row]["images"]
            path = images[lines[row].get("map_image", 0)]["path"] if images else ""
            hits.append(Hit(rank, score, lines[row]["study_id"], path))
        return hits

    def thumbnail(self, hit: Hit, side: int = THUMBNAIL) -> Image.Image:
        """The hit's radiograph, no larger than `side`.

        Raises:
            ValueError: it cannot be read any more.
        """
        picture = open_radiograph(Path(self.info["image_folder"]) / check_relative_path(hit.image))
        picture.thumbnail((side, side), Image.Resampling.BILINEAR)
        return picture


def write_search_page(index: Index, query: str, hits: Sequence[Hit], path: str | Path) -> Path:
    """One self-contained page of the hits with their radiographs; nothing in it runs, and nothing is fetched."""
    cards = []
    for hit in hits:
        try:
            picture = io.BytesIO()
            index.thumbnail(hit).save(picture, "JPEG", quality=80)
            shown = f'<img alt="radiograph of {html.escape(hit.study_id)}" src="data:image/jpeg;base64,'
            shown += base64.b64encode(picture.getvalue()).decode() + '">'
        except ValueError as error:
            shown = f"<p>{html.escape(str(error))}</p>"
        caption = f"<b>{hit.rank}. {html.escape(hit.study_id)}</b> {hit.score:.3f}"
        cards.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    with atomic_open(path) as handle:
        parts = {"query": html.escape(query), "cards": "\n".join(cards)}
        handle.write(re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole.group(1)], PAGE))
    return Path(path)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>hf_medvlm search</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 24px auto; max-width: 1200px; padding: 0 16px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
figure { margin: 0; } img { width: 100%; background: #000; border-radius: 6px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
</style>
<h1>{{query}}</h1>
<p>The nearest studies, with the cosine between query and study. It suggests, never decides; not a medical device.</p>
<main>
{{cards}}
</main>
</html>
"""
