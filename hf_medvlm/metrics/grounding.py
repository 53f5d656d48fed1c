"""How well a heat map finds what a phrase describes: contrast, overlap and the highest point, against boxes.

NumPy only: knows no model, no phrase and no file. What is undefined is NaN and is left out of the means, never 0.

Headline: `cnr`, greater is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import datasets
import evaluate
import numpy as np

from hf_medvlm.metrics.base import InMemory, numbers

PRIMARY, GREATER_IS_BETTER = "cnr", True
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)  # of BioViL (arXiv 2204.09817, section 5.2)
MASK_THRESHOLD = 0.3
KINDS = ("cnr", "cnr_absolute", "miou", "pointing_game", "dice", "mask_precision", "mask_recall")
PROTOCOL = {
    "cnr": "per phrase (mean inside - mean outside) / sqrt(variance inside + variance outside); boxes of a phrase are "
    "one region; mean over phrases. Signed: a map that is high outside the boxes counts against, so that a random map "
    "scores 0",
    "cnr_absolute": "BioViL's own form, the absolute value per phrase; over small regions a smooth random map scores "
    "well above 0 with it, so hold it against its baseline",
    "miou": f"IoU of map > t with the boxes, mean over t = {THRESHOLDS} unless given, then over phrases",
    "pointing_game": "is the highest pixel inside a box; of several highest pixels, the share inside",
    "dice": f"Dice of map > {MASK_THRESHOLD} unless given; mask_precision and mask_recall of the same mask",
}


def box_mask(boxes: Iterable[Sequence[float]], width: int, height: int) -> np.ndarray:
    """The union of boxes (left, top, width, height; pixels) as (height, width) bool.

    A pixel belongs to a box that covers its centre; the pixel in a box's middle belongs to it however small it is.

    Raises:
        ValueError: a box that lies outside the image altogether.
    """
    mask = np.zeros((height, width), dtype=bool)
    for x, y, w, h in boxes:
        if x >= width or y >= height:
            raise ValueError(f"box {(x, y, w, h)} lies outside the image of {width} x {height} pixels")
        mask[round(y) : round(y + h), round(x) : round(x + w)] = True
        mask[min(int(y + h / 2), height - 1), min(int(x + w / 2), width - 1)] = True
    return mask


def phrase_scores(
    heat_map: np.ndarray,
    mask: np.ndarray,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    mask_threshold: float = MASK_THRESHOLD,
) -> dict[str, float]:
    """All measures of one phrase.

    Args:
        heat_map: (H, W); NaN where the model has not looked, which counts as not found.
        mask: (H, W) bool, where the phrase is.
        thresholds: of `miou`, in the map's own unit. mask_threshold: of `dice`, `mask_precision` and `mask_recall`.

    Raises:
        ValueError: a mask of another size than the map, or an empty one.
    """
    heat_map, mask = np.asarray(heat_map, dtype=float), np.asarray(mask, dtype=bool)
    if heat_map.ndim != 2 or heat_map.shape != mask.shape:
        raise ValueError(
            f"a mask of {mask.shape} does not fit a heat map of {heat_map.shape}; bring the map to the image's size, "
            "or make the mask at the map's"
        )
    if not mask.any():
        raise ValueError("a mask without a pixel: leave phrases without boxes out")
    seen = ~np.isnan(heat_map)
    result = dict.fromkeys(KINDS, math.nan)
    inside, outside = heat_map[mask & seen], heat_map[~mask & seen]
    if inside.size and outside.size:
        noise = math.sqrt(inside.var() + outside.var())
        result["cnr"] = (inside.mean() - outside.mean()) / noise if noise > 0 else math.nan
        result["cnr_absolute"] = abs(result["cnr"])
    result["pointing_game"] = float(mask[heat_map == heat_map[seen].max()].mean()) if seen.any() else 0.0

    areas = [np.nan_to_num(heat_map, nan=-np.inf) > threshold for threshold in (*thresholds, mask_threshold)]
    hits = [np.count_nonzero(area & mask) for area in areas]
    sizes = [np.count_nonzero(area) for area in areas]
    truth = np.count_nonzero(mask)
    result["miou"] = float(
        np.mean([hit / (size + truth - hit) for hit, size in zip(hits[:-1], sizes[:-1], strict=True)])
    )
    result["dice"] = 2 * hits[-1] / (sizes[-1] + truth)
    result["mask_precision"] = hits[-1] / sizes[-1] if sizes[-1] else math.nan
    result["mask_recall"] = hits[-1] / truth
    return {name: float(value) for name, value in result.items()}


def grounding_scores(
    heat_maps: Iterable[np.ndarray],
    masks: Iterable[np.ndarray],
    *,
    categories: Sequence[str] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    mask_threshold: float = MASK_THRESHOLD,
) -> dict[str, float]:
    """Means of `phrase_scores` over phrases, `n`, and the same by category (`cnr/<category>`, `n/<category>`).

    Args:
        heat_maps, masks: one (H, W) each a phrase; sizes may differ between phrases.
        categories: one name a phrase, as MS-CXR reports them.
    """
    pairs = zip(heat_maps, masks, strict=True)
    rows = [phrase_scores(m, mask, thresholds=thresholds, mask_threshold=mask_threshold) for m, mask in pairs]
    result = mean_scores(rows) | {"n": len(rows)}
    if categories is not None:
        if len(categories) != len(rows):
            raise ValueError(f"{len(categories)} categories for {len(rows)} phrases; give one for each")
        for name in sorted(set(categories)):
            chosen = [row for row, category in zip(rows, categories, strict=True) if category == name]
            result |= {f"{kind}/{name}": value for kind, value in mean_scores(chosen).items()}
            result[f"n/{name}"] = len(chosen)
    return result


def mean_scores(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each measure over the phrases where it is defined; NaN where it is nowhere."""
    means = {}
    for kind in KINDS:
        values = [row[kind] for row in rows if not math.isnan(row[kind])]
        means[kind] = float(np.mean(values)) if values else math.nan
    return means


class Metric(InMemory, evaluate.Metric):
    """`compute(predictions=heat maps, references=masks, categories=None, thresholds=..., mask_threshold=...)`.

    Lists of (H, W) arrays, as in `grounding_scores`.
    """

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=grounding_scores.__doc__,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(
        self,
        predictions: Sequence,
        references: Sequence,
        categories: Sequence[str] | None = None,
        thresholds: Sequence[float] = THRESHOLDS,
        mask_threshold: float = MASK_THRESHOLD,
    ) -> dict[str, float]:
        maps, masks = (
            [numbers(f"a row of the {side}", item).astype(float) for item in items]
            for side, items in (("predictions", predictions), ("references", references))
        )
        return grounding_scores(
            maps, masks, categories=categories, thresholds=thresholds, mask_threshold=mask_threshold
        )
