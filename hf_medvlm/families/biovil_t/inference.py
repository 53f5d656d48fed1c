"""BioViL and BioViL-T on new radiographs, with or without the one before: embeddings, findings, change, grounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.prompts import prompts_for
from hf_medvlm.families.biovil_t.collator import PriorCollator, find_priors
from hf_medvlm.families.biovil_t.evaluation import SIGMA, SIGMA_GRID, BioViLTEvaluation
from hf_medvlm.families.biovil_t.model import BioViLTModel
from hf_medvlm.families.biovil_t.phrase_grounding import similarity_map
from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor, BioViLTProcessor
from hf_medvlm.families.biovil_t.recipe import is_published
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.models.loading import load_processor, load_strictly, load_tokenizer

MODEL_TYPES = (BioViLTModel.config_class.model_type,)


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family, or holds the original project's files."""
    return model_type in MODEL_TYPES or is_published(folder)


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The BioViL-T in `folder`, its own or the published one with CXR-BERT beside it."""
    if is_published(folder):
        model: Any = BioViLTModel.from_published(folder)
        model.to(dtype)
        images = BioViLTImageProcessor(crop_size=448 if model.config.temporal else 480)
        if model.config.text_config is None:
            raise ValueError(f"{folder} holds the image side alone; put CXR-BERT beside it and give the folder")
        processor = BioViLTProcessor(images, load_tokenizer(folder))
    else:
        model = load_strictly(BioViLTModel, folder, dtype=dtype)
        processor = load_processor(folder, BioViLTProcessor)
    collator = PriorCollator(
        processor,
        folder,
        max_length=settings.get("max_length", PriorCollator.max_length),
        progression_findings=tuple(model.config.progression_findings),
        findings=tuple(model.config.findings),
    )
    wanted: dict[str, Any] = {"findings": tuple(settings["findings"])} if "findings" in settings else {}
    return BioViLTPredictor(model, BioViLTEvaluation(collator, model, **wanted), folder)


class BioViLTPredictor(Predictor):
    """Compares radiographs with texts and, where it is given the one before, with that."""

    family = "a BioViL-T"
    map_meaning = "cosine of each patch with the phrase, smoothed"

    @property
    def abilities(self) -> frozenset[str]:  # type: ignore[override]
        """As the checkpoint allows: texts need the text side, progression a classifier."""
        config = self.model.config
        able = {"embed"}
        if config.text_config is not None:
            able |= {"embed_texts", "findings", "ground"}
        if config.findings:
            able.add("findings")
        if config.progression_findings:
            able.add("progression")
        return frozenset(able)

    @property
    def takes_previous(self) -> bool:  # type: ignore[override]
        """BioViL-T does, BioViL does not."""
        return bool(self.model.config.temporal)

    def see(self, image_folder: str | Path | Mapping[str, Image.Image], priors: Iterable[Study] = ()) -> None:
        super().see(image_folder, priors)
        self.collator.priors = find_priors(priors) if self.takes_previous else {}

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """Smoothed cosine of each patch of the current image with a phrase, as published."""
        features = self.model.get_image_features(batch["pixel_values"]).projected_patch_embeddings
        patches = F.normalize(features.float(), dim=1)
        texts = list(dict.fromkeys(text for asked in phrases for text in asked))
        if not texts:
            return [{} for _ in phrases]
        embeds = dict(zip(texts, self._embed_texts(texts), strict=True))
        sigma = SIGMA * min(1, patches.shape[-2] / SIGMA_GRID)
        return [
            {text: similarity_map(grid.permute(1, 2, 0), embeds[text], sigma) for text in asked}
            for grid, asked in zip(patches, phrases, strict=True)
        ]

    def shown_phrases(self, described: Mapping[str, Any], most: int) -> list[str]:
        if "ground" not in self.abilities:
            return []
        return [prompts_for(name)[0][0] for name in super().shown_phrases(described, most)]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._to_device(self.collator.tokenize(texts))
        return F.normalize(self.model.get_text_features(**tokens).float(), dim=-1)
