"""Evaluation of patch bottlenecks: `RetrievalEvaluation`, and where the kept patches lie, what they save, what they
explain.

Patches are compared with the boxes of the frontal image on the model's grid: a patch is inside where its centre is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores, run_over
from hf_medvlm.evaluation.maps import crop_of, thumbnail_map
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.intervals import bootstrap_interval

if TYPE_CHECKING:
    from transformers import EvalPrediction

CURVES = (
    "area under the cosine of image and report while the most salient patches are taken away (deletion) or come in "
    "first (insertion), mean over studies (RISE, arXiv 1806.07421, on patches)"
)
SHOWN_STUDIES = 200  # at the head of the split, whose maps are kept for the pages
MEASURES = ("mask_precision", "mask_recall", "mask_iou", "pointing_game", "box_share")


@dataclass
class PatchEvaluation(RetrievalEvaluation):
    """Scores a `PatchIBModel`.

    Args:
        perturbation_steps: points of the deletion and insertion curves behind the first; 0 leaves them out.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        *(*RetrievalEvaluation.METRICS, *MEASURES, "patches_used", "deletion_auc", "insertion_auc"),
    )

    perturbation_steps: int = 4

    def tensors(self, model: nn.Module, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        tensors = super().tensors(model, output, batch) | {"salience": output.salience, "kept": output.kept}
        if self.perturbation_steps:
            curves = perturbation_curves(
                model, batch["pixel_values"], output.text_embeds, output.salience, self.perturbation_steps
            )
            tensors |= dict(zip(("deletion", "insertion"), curves, strict=True))
        return tensors

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """As `predict`; deletion and insertion, which `forward` does not tell, take a pass of their own."""
        if self.perturbation_steps:
            return run_over(self, self.model, self.studies)
        salience, kept = (list(np.asarray(part)) for part in eval_prediction.predictions[3:5])
        return super().outputs_of(eval_prediction) | {"salience": salience, "kept": kept}

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        scores = super().score(outputs, studies)
        kept, salience = np.stack(outputs["kept"]), np.stack(outputs["salience"])
        how = "share of the patches that the model keeps, mean over studies"
        scores.add({"patches_used": float(kept.mean())}, facts.COST, how, better=facts.LOWER)
        rows = [self._against_boxes(study, kept[i], salience[i]) for i, study in enumerate(studies)]
        boxed = sum(not np.isnan(row["box_share"]) for row in rows)
        how = (
            "kept patches against the union of the frontal image's boxes, a patch inside where its centre is; mean "
            f"over {boxed} studies with boxes"
        )
        for name in MEASURES:
            values = np.array([row[name] for row in rows])
            mean = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
            if name == "box_share":
                meaning = f"the boxes' share of the patches; mean over {boxed} studies with boxes"
                scores.add({name: mean}, facts.GROUNDING, meaning, better=facts.NEITHER)
            else:
                scores.add({name: mean}, facts.GROUNDING, how)
            scores.intervals[name] = bootstrap_interval(values, [study.patient_id for study in studies])
        share, used = scores.metrics["box_share"], scores.metrics["patches_used"]
        scores.baselines["random_patches"] = {"mask_precision": share, "mask_recall": used, "pointing_game": share}
        for name, better in (("deletion", facts.LOWER), ("insertion", facts.HIGHER)) if self.perturbation_steps else ():
            curve = np.stack(outputs[name]).mean(0)
            area = {f"{name}_auc": float(((curve[1:] + curve[:-1]) / 2).mean())}
            scores.add(area, facts.GROUNDING, f"{name}: {CURVES}", better=better, unit="cosine")
            scores.figures[name] = curve.tolist()
        for i, (study, prediction) in enumerate(zip(studies, scores.predictions, strict=True)):
            prediction["maps"] = self._maps(study, salience[i], kept[i]) if i < SHOWN_STUDIES else {}
            prediction["map_image"] = study.images.index(study.frontal)
            prediction["scores"] |= rows[i]
        return scores

    def _maps(self, study: Study, salience: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
        """Both maps over the whole image, for the pages; null where the model's crop leaves it out."""
        processor = self.collator.processor.image_processor
        assert study.frontal is not None, study.study_id
        size = open_radiograph(Path(self.collator.image_folder) / study.frontal.path).size
        if size[0] == size[1] and len(set(crop_of(processor))) == 1:  # the model sees all of it
            return {"salience": np.round(salience, 3).tolist(), "kept": kept.tolist()}
        maps = {"salience": salience, "kept": kept}
        return {name: thumbnail_map(torch.from_numpy(grid), size, processor) for name, grid in maps.items()}

    def _against_boxes(self, study: Study, kept: np.ndarray, salience: np.ndarray) -> dict[str, float]:
        """The measures of one study; NaN without boxes on its frontal image."""
        boxes = [box.xywh for box in study.frontal_boxes()]
        if not boxes:
            return dict.fromkeys(MEASURES, float("nan"))
        assert study.frontal is not None, study.study_id
        size = open_radiograph(Path(self.collator.image_folder) / study.frontal.path).size
        inside = patches_inside(boxes, size, self.collator.processor.image_processor, kept.shape)
        return mask_scores(kept > 0.5, salience, inside)


def mask_scores(kept: np.ndarray, salience: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Precision, recall and IoU of kept against inside patches, the pointing game of the salience (ties shared out).

    Args:
        kept, inside: (rows, columns) bool. salience: (rows, columns).
    """
    hits = int((kept & inside).sum())
    best = salience == salience.max()

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return {
        "mask_precision": share(hits, int(kept.sum())),
        "mask_recall": share(hits, int(inside.sum())),
        "mask_iou": share(hits, int((kept | inside).sum())),
        "pointing_game": float(inside[best].mean()) if inside.any() else float("nan"),
        "box_share": float(inside.mean()),
    }


def patches_inside(
    boxes: Iterable[Sequence[float]],
    size: tuple[int, int],
    image_processor: Any,
    grid: tuple[int, int],
) -> np.ndarray:
    """(rows, columns) bool: whose centre lies in a box, once the image has been resized and cropped for the model.

    Args:
        boxes: left, top, width, height in pixels of the stored image. size: its (width, height).
        image_processor: with a shortest edge and a centre crop, as `OpenClipImageProcessor`.
    """
    edge, crop = image_processor.size["shortest_edge"], image_processor.crop_size
    scale = edge / min(size)
    resized = [edge if side == min(size) else int(edge * side / min(size)) for side in size]
    left, top = round((resized[0] - crop["width"]) / 2), round((resized[1] - crop["height"]) / 2)
    across = (np.arange(grid[1]) + 0.5) * crop["width"] / grid[1] + left
    down = (np.arange(grid[0]) + 0.5) * crop["height"] / grid[0] + top
    inside = np.zeros(grid, dtype=bool)
    for x, y, width, height in boxes:
        columns = (across >= x * scale) & (across <= (x + width) * scale)
        rows = (down >= y * scale) & (down <= (y + height) * scale)
        inside |= rows[:, None] & columns[None]
    return inside


@torch.no_grad()
def perturbation_curves(
    model: Any, pixel_values: Tensor, text_embeds: Tensor, salience: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Similarity of image and report while the most salient patches are taken away, and while they come in first.

    Args:
        pixel_values: (B, 3, H, W), normalised, so that 0 is the mean colour: what a patch that is away looks like.
        text_embeds: (B, D), normalised. salience: (B, rows, columns).

    Returns:
        Deletion and insertion, (B, steps + 1) each, at shares 0, 1/steps, ..., 1 of the patches.

    Ref: Petsiuk et al. 2018, RISE (arXiv 1806.07421), on patches.
    """
    flat = salience.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the most salient
    curves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(steps + 1):
        first = (rank < round(step / steps * flat.shape[1])).view_as(salience)
        for curve, shown in zip(curves, (~first, first), strict=True):
            pixels = pixel_values * F.interpolate(shown[:, None].float(), pixel_values.shape[2:], mode="nearest")
            embeds = F.normalize(model.get_image_features(pixels).float(), dim=-1)
            curve.append((embeds * text_embeds).sum(-1))
    return torch.stack(curves[0], dim=1), torch.stack(curves[1], dim=1)
