"""BLIP and GIT on new radiographs: the report that the run's own evaluation would have had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.families.captioners.attention import word_attention
from hf_medvlm.families.captioners.collator import CaptionCollator
from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.inference.writer import WriterPredictor
from hf_medvlm.models.loading import load_image_processor, load_strictly, load_tokenizer, model_type_of

CLASSES: dict[str, type[BlipCaptioner] | type[GitCaptioner]] = {
    "blip": BlipCaptioner,
    "medvlm_blip": BlipCaptioner,
    "git": GitCaptioner,
    "medvlm_git": GitCaptioner,
}
MODEL_TYPES = tuple(CLASSES)


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family."""
    return model_type in CLASSES


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The captioner in `folder`, with the prompt and the lengths of its run."""
    model_class = CLASSES[model_type_of(folder)]
    model = load_strictly(model_class, folder, dtype=dtype)
    processor = model_class.make_processor(load_image_processor(folder), load_tokenizer(folder))
    written = getattr(model, "generation_config", None)
    max_length = settings.get("max_length", CaptionCollator.max_length)
    collator = CaptionCollator(
        processor,
        folder,
        first_token=model.first_token(model.config),
        prompt=settings.get("prompt", ""),
        max_length=max_length,
    )
    evaluation = TextEvaluation(
        collator,
        processor.tokenizer,
        (),
        max_new_tokens=settings.get("max_new_tokens") or getattr(written, "max_new_tokens", None) or max_length,
        num_beams=settings.get("num_beams") or getattr(written, "num_beams", None) or 1,
    )
    return CaptionPredictor(model, evaluation, folder)


class CaptionPredictor(WriterPredictor):
    """Writes a report of each radiograph."""

    family = "a captioner"
    abilities = frozenset({"report", "ground"})
    look = staticmethod(word_attention)
