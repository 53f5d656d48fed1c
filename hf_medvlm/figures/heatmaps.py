"""Where the model looked: heat maps over the radiograph, beside the boxes of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.study import check_relative_path
from hf_medvlm.figures.results import Run
from hf_medvlm.figures.style import BOX_COLOUR, MAP_COLOURS, plain, sheet

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_STUDIES = 6
SHOWN_SIDE = 512  # pixels: more than this is lost in print


def open_image(run: Run, path: str) -> Image:
    """The radiograph at `path`, relative to the run's image folder, mode "L".

    Raises:
        ValueError: the run names no image folder, the path leaves it, or the file is no image that can be read.
    """
    if run.image_folder is None:
        raise ValueError("the run does not say where its images are (image_folder in run.json)")
    return open_radiograph(run.image_folder / check_relative_path(path))


def image_paths(prediction: Mapping[str, Any]) -> list[str]:
    """Image paths of one line of predictions.jsonl, which names them as texts or as {path, view}."""
    images = prediction.get("images") or []
    return [str(image.get("path", "")) if isinstance(image, Mapping) else str(image) for image in images]


def mapped_image(prediction: Mapping[str, Any]) -> int:
    """Which of the study's images its maps lie over: `map_image`, or the first."""
    return int(prediction.get("map_image") or 0)


def draw_heat_maps(run: Run, path: Path) -> bool:
    """A row a study: the radiograph, then each of up to three maps over it, with the boxes of the map's finding."""
    chosen = []
    with_maps = [p for p in run.predictions if p.get("maps") and image_paths(p)]
    for prediction in sorted(with_maps, key=lambda p: not p.get("boxes")):
        try:
            image = open_image(run, image_paths(prediction)[mapped_image(prediction)])
        except (ValueError, IndexError):
            continue  # the report page names each image that it could not read
        chosen.append((prediction, image))
        if len(chosen) == MOST_STUDIES:
            break
    if not chosen:
        return False
    columns = 1 + min(3, max(len(p["maps"]) for p, _ in chosen))
    with sheet(path, len(chosen), columns, width=2.4 * columns, height=2.6 * len(chosen)) as panels:
        for axes in panels:
            axes.set_axis_off()
        for row, (prediction, image) in enumerate(chosen):
            line = panels[row * columns : (row + 1) * columns]
            _show(line[0], image, prediction, None)
            line[0].set_title(f"study {plain(prediction.get('study_id', row), 20)}", fontsize=8)
            for axes, (name, values) in zip(line[1:], _boxed_first(prediction), strict=False):
                _show(axes, image, prediction, name)
                width, height = image.size
                grid = np.asarray(values, dtype=float)  # null where the model has not looked
                axes.imshow(grid, cmap=MAP_COLOURS, alpha=0.45, extent=(0, width, height, 0), interpolation="bilinear")
                axes.set_title(plain(name, 24), fontsize=8)
    return True


def _boxed_first(prediction: Mapping[str, Any]) -> list[tuple[str, list]]:
    boxed = {box.get(key) for box in prediction.get("boxes") or [] for key in ("finding", "phrase")}
    return sorted(prediction["maps"].items(), key=lambda item: item[0] not in boxed)


def _show(axes, image: Image, prediction: Mapping[str, Any], name: str | None) -> None:
    """The picture in pixels of the stored image, with all boxes, or those of the finding `name`."""
    from matplotlib.patches import Rectangle

    width, height = image.size
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    axes.imshow(small, vmin=0, vmax=255, extent=(0, width, height, 0))
    for box in prediction.get("boxes") or []:
        here = box.get("image", 0) == mapped_image(prediction)
        if here and (name is None or name in (box.get("finding"), box.get("phrase"))):
            x, y, w, h = box["xywh"]
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=BOX_COLOUR, linewidth=1.4))
    axes.set(xlim=(0, width), ylim=(height, 0))
