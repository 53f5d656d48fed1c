"""Dual encoders on new radiographs: embeddings, zero-shot findings and, with a local loss, where a phrase is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.dual_encoder.processor import published_processor
from hf_medvlm.families.dual_encoder.published import is_published
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.models.encoding import IMAGE_INPUTS, encode_image, encode_text
from hf_medvlm.models.loading import load_processor, load_strictly

MODEL_TYPES = (DualEncoderModel.config_class.model_type,)


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family, or a published CLIP, SigLIP or open_clip."""
    return model_type in MODEL_TYPES or is_published(folder)


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The dual encoder in `folder`, its own or open_clip's."""
    if is_published(folder):
        model: Any = DualEncoderModel.from_published(folder)
        model.to(dtype)
        processor = published_processor(folder, model.config)
    else:
        model = load_strictly(DualEncoderModel, folder, dtype=dtype)
        processor = load_processor(folder)
    collator = PairCollator(processor, folder, max_length=settings.get("max_length", PairCollator.max_length))
    evaluation = RetrievalEvaluation(collator, model, findings=tuple(settings.get("findings") or CHEXPERT_14))
    return PairPredictor(model, evaluation, folder)


class PairPredictor(Predictor):
    """Puts radiographs and texts into one space."""

    family = "a dual encoder"
    map_meaning = "mean cosine of each patch with the words of the phrase"

    @property
    def abilities(self) -> frozenset[str]:  # type: ignore[override]
        """All of them have embeddings; only a local loss compares patches with words."""
        able = {"embed", "embed_texts", "findings"}
        return frozenset(able | {"ground"} if self.model.config.local_loss else able)

    def require(self, ability: str) -> None:
        if ability == "ground" and ability not in self.abilities:
            raise ValueError(
                f"{self.folder} holds {self.family} trained without --local_loss, whose patches were never compared "
                "with words; .ground needs a model trained with --local_loss gloria, mgca or filip"
            )
        super().require(ability)

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """The mean cosine of each patch with the words of a phrase, which is what a local loss compares."""
        image = encode_image(self.model.vision_tower, **{name: batch[name] for name in IMAGE_INPUTS if name in batch})
        patches = F.normalize(self.model.vision_projection(image.patches).float(), dim=-1)  # (B, P, D)
        words = {text: self._words(text) for text in dict.fromkeys(text for asked in phrases for text in asked)}
        return [
            {text: (patches[row] @ words[text].mT).mean(-1).view(image.grid).cpu() for text in asked}
            for row, asked in enumerate(phrases)
        ]

    def _words(self, text: str) -> Tensor:
        """(T, D), normalised: the tokens of a phrase without the special ones at its ends."""
        tokens = self._to_device(self.collator.tokenize([text]))
        states = encode_text(self.model.text_tower, **tokens, pooling=self.model.config.text_pooling).tokens
        words = F.normalize(self.model.text_projection(states[0]).float(), dim=-1)
        return words[1:-1] if len(words) > 2 else words

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._to_device(self.collator.tokenize(texts))
        return F.normalize(self.model.get_text_features(**tokens).float(), dim=-1)
