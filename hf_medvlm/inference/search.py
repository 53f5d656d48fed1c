"""The nearest studies of an index to a text or an image: exact, by blocks, on any device.

An index is what `predict_studies` leaves of a model with embeddings: `embeddings.safetensors`, a line a study in
`predictions.jsonl`, and the hash of the weights in `run.json`.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from hf_medvlm.checked import count, many, name, record, words
from hf_medvlm.data.files import atomic_open, check_regular, load_json, open_text, read_json
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.study import check_relative_path
from hf_medvlm.errors import library_errors
from hf_medvlm.inference.predict import EMBEDDINGS, PREDICTIONS, RUN, model_hash
from hf_medvlm.inference.predictor import Predictor

BLOCK = 65_536  # rows compared at a time: 128 MiB of 512 numbers each
THUMBNAIL = 256

INFO = record("model model_hash", model=name, model_hash=name, image_folder=words, studies=count)
LINE = record("study_id", study_id=name, images=many(record("path", path=name)), map_image=count)
"""What the files of an index hold, as far as a search reads them."""


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
                f"`hf-medvlm index RUN IMAGES --out FOLDER`, which goes on where it was interrupted"
            )
        self.info: dict[str, Any] = INFO(load_json(self.folder / RUN, dict), f"{self.folder / RUN}:")

        self.rows, self.width = self._shape()

    def _shape(self) -> tuple[int, int]:
        path = self.folder / EMBEDDINGS
        check_regular(path)
        with library_errors(f"{path}: cannot be read", "make the index anew"), safe_open(path, framework="pt") as file:
            shape = file.get_slice("image_embeds").get_shape() if "image_embeds" in file.keys() else []  # noqa: SIM118
            kind = file.get_slice("image_embeds").get_dtype() if shape else ""
        if len(shape) != 2 or not kind.startswith(("F", "BF")):
            raise ValueError(f"{path}: `image_embeds` must be rows of numbers; make the index anew")
        return shape[0], shape[1]

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
            ValueError: embeddings of another width, or that are no numbers.
        """
        asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(device)
        best: list[list[tuple[float, int]]] = [[] for _ in asked]
        with safe_open(self.folder / EMBEDDINGS, framework="pt") as file:
            rows, count = file.get_slice("image_embeds"), self.rows
            if self.width != asked.shape[1]:
                raise ValueError(
                    f"{self.folder} holds embeddings of {self.width} numbers, the query has {asked.shape[1]}"
                )
            for start in range(0, count, BLOCK):
                block = rows[start : min(start + BLOCK, count)].to(device)
                scores = asked @ block.mT.to(asked.dtype)  # (Q, rows)
                if not bool(torch.isfinite(scores).all()):
                    raise ValueError(f"{self.folder / EMBEDDINGS}: NaN or infinite embeddings; make the index anew")
                order = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
                values = scores.gather(1, order).tolist()
                for number, places in enumerate(order.tolist()):
                    candidates = [(-value, start + place) for place, value in zip(places, values[number], strict=True)]
                    best[number] = sorted(best[number] + candidates)[:top]
        return [[(row, -score) for score, row in nearest] for nearest in best]

    def hits(self, rows: Sequence[tuple[int, float]]) -> list[Hit]:
        """The studies of rows that `nearest` gave.

        Raises:
            ValueError: a line that is none of an index, or fewer lines than embeddings; the message names the line.
        """
        path = self.folder / PREDICTIONS
        wanted = {row for row, _ in rows}
        lines: dict[int, dict[str, Any]] = {}
        with open_text(path) as handle:
            for number, text in enumerate(handle):
                if number in wanted:
                    place = f"{path}:{number + 1}"
                    lines[number] = LINE(read_json(text, path, number + 1), f"{place}:")
                    if not 0 <= (lines[number].get("map_image") or 0) < max(1, len(lines[number].get("images") or [])):
                        raise ValueError(f"{place}: map_image is none of the study's images; make the index anew")
                    if len(lines) == len(wanted):
                        break
        if len(lines) < len(wanted):
            raise ValueError(f"{path}: fewer lines than the {self.rows:,} embeddings beside it; make the index anew")
        hits = []
        for rank, (row, score) in enumerate(rows, start=1):
            images = lines[row].get("images") or []
            image = images[lines[row].get("map_image") or 0]["path"] if images else ""
            hits.append(Hit(rank, score, lines[row]["study_id"], image))
        return hits

    def thumbnail(self, hit: Hit, side: int = THUMBNAIL) -> Image.Image:
        """The hit's radiograph, no larger than `side`.

        Raises:
            ValueError: it cannot be read any more.
        """
        picture = open_radiograph(Path(self.info.get("image_folder") or ".") / check_relative_path(hit.image))
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
