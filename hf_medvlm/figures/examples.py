"""What the model wrote, beside the radiograph and the reference: the best, the typical and the worst studies."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.figures.heatmaps import image_paths, open_image
from hf_medvlm.figures.marks import agreement, compare
from hf_medvlm.figures.results import Run
from hf_medvlm.figures.style import MUTED, PALETTE, plain, sheet

if TYPE_CHECKING:
    from PIL.Image import Image

OF_EACH = 2
SHOWN_SIDE = 384  # pixels
LINE, MOST_LINES = 88, 7  # characters, and lines of a text


def draw_examples(run: Run, path: Path) -> bool:
    """Two studies each, by the share of findings on which prediction and reference agree."""
    written = [p for p in run.predictions if p.get("prediction") and image_paths(p)]
    ranked = sorted(written, key=lambda p: (_share(p), len(str(p.get("reference")))))
    middle = max(len(ranked) // 2 - 1, 0)
    picks = {"worst": ranked[:OF_EACH], "typical": ranked[middle : middle + OF_EACH], "best": ranked[::-1][:OF_EACH]}
    chosen: dict[int, tuple[str, Mapping[str, Any], Image]] = {}
    for name in ("best", "typical", "worst"):
        for prediction in picks[name]:
            try:
                image = open_image(run, image_paths(prediction)[0])
            except ValueError:
                continue  # the report page names each image that it could not read
            chosen.setdefault(id(prediction), (name, prediction, image))
    if not chosen:
        return False
    with sheet(path, len(chosen), 1, width=9.2, height=2.35 * len(chosen)) as panels:
        for axes, (name, shown, image) in zip(panels, chosen.values(), strict=True):
            axes.set_axis_off()
            picture = axes.inset_axes((0, 0, 0.25, 1))
            image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            picture.imshow(image, vmin=0, vmax=255)
            picture.set_axis_off()
            share = f"{_share(shown):.0%} of the findings agree"
            axes.set_title(f"{name}: study {plain(shown.get('study_id', ''), 30)}, {share}", fontsize=9)
            for side, top, colour in (("reference", 0.98, MUTED), ("prediction", 0.48, PALETTE[0])):
                axes.text(0.27, top, side, va="top", fontsize=7.5, color=colour, fontweight="bold")
                axes.text(0.27, top - 0.08, _wrapped(shown.get(side)), va="top", fontsize=7.5)
    return True


def _share(prediction: Mapping[str, Any]) -> float:
    reference, predicted = (prediction.get(f"findings_{side}") or {} for side in ("reference", "prediction"))
    return agreement(compare(reference, predicted)) or 0.0


def _wrapped(text: Any) -> str:
    lines = textwrap.wrap(plain(text or "", 5000), LINE, max_lines=MOST_LINES, placeholder=" …")
    return "\n".join(lines)
