"""Patch bottlenecks on new radiographs: as dual encoders, and the patches that they keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.families.dual_encoder.inference import PairPredictor
from hf_medvlm.families.patch_ib.evaluation import PatchEvaluation
from hf_medvlm.families.patch_ib.model import PatchIBModel
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.models.loading import load_processor, load_strictly

MODEL_TYPES = (PatchIBModel.config_class.model_type,)


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family."""
    return model_type in MODEL_TYPES


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The bottleneck in `folder`."""
    model = load_strictly(PatchIBModel, folder, dtype=dtype)
    processor = load_processor(folder)
    collator = PairCollator(processor, folder, max_length=settings.get("max_length", PairCollator.max_length))
    evaluation = PatchEvaluation(collator, model, findings=tuple(settings.get("findings") or CHEXPERT_14))
    return PatchPredictor(model, evaluation, folder)


class PatchPredictor(PairPredictor):
    """A dual encoder that shows which patches it kept."""

    family = "a patch bottleneck"
    abilities = frozenset({"embed", "embed_texts", "findings", "ground"})

    @property
    def map_meaning(self) -> str:  # type: ignore[override]
        """Variants C to E choose their patches by the image alone."""
        by = "the image alone" if self.model.config.variant in "CDE" else "the phrase"
        return f"how much each patch counts, 0 where it was not kept; chosen by {by}"

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """How much each patch counts beside a phrase, 0 where it was not kept."""
        maps: list[dict[str, Tensor]] = [{} for _ in phrases]
        for text in dict.fromkeys(text for asked in phrases for text in asked):
            rows = [row for row, asked in enumerate(phrases) if text in asked]
            tokens = self._to_device(self.collator.tokenize([text] * len(rows)))
            output = self.model(pixel_values=batch["pixel_values"][rows], **tokens)
            for row, salience, kept in zip(rows, output.salience, output.kept, strict=True):
                maps[row][text] = (salience * kept).float().cpu()
        return maps
