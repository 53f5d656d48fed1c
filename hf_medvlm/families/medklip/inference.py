"""MedKLIP on new radiographs: the probability of each entity, and where the decoder looked for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_medvlm.families.medklip.collator import FindingsCollator
from hf_medvlm.families.medklip.descriptions import describe, text_embeddings
from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation, shown_name
from hf_medvlm.families.medklip.model import MedKlipModel
from hf_medvlm.inference.predictor import Outputs, Predictor
from hf_medvlm.labels import MEDKLIP_POSITIONS
from hf_medvlm.language.findings import extract_triplets
from hf_medvlm.models.loading import load_image_processor, load_strictly

logger = logging.getLogger(__name__)

MODEL_TYPES = (MedKlipModel.config_class.model_type,)


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family."""
    return model_type in MODEL_TYPES


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The MedKLIP in `folder`, with the thresholds and the untrained entities of its run."""
    model = load_strictly(MedKlipModel, folder, dtype=dtype)
    held_out = settings.get("held_out") or {}
    entities = [*model.config.entities, *held_out]
    positions = model.config.positions or MEDKLIP_POSITIONS
    collator = FindingsCollator(load_image_processor(folder), folder, entities, positions)
    limits = settings.get("thresholds")
    # null where no validation study was positive: no probability is above NaN
    chosen = None if limits is None else np.array([_limit(limits, name) for name in entities])
    embeddings = torch.tensor(list(held_out.values()), dtype=dtype) if held_out else None
    predictor = MedKlipPredictor(model, MedKlipEvaluation(collator, embeddings, chosen), folder)
    predictor.text_encoder = settings.get("text_encoder")
    return predictor


def _limit(limits: dict[str, float | None], entity: str) -> float:
    limit = limits.get(shown_name(entity), limits.get(entity))  # under the entity's own name in earlier versions
    return float("nan") if limit is None else limit


class MedKlipPredictor(Predictor):
    """Looks for each entity and says how likely it is."""

    family = "a MedKLIP"
    map_meaning = "the decoder's attention, sums to 1 over the patches"
    abilities = frozenset({"findings", "ground"})
    evaluation: MedKlipEvaluation
    text_encoder: str | None = None  # what embeds descriptions: a BERT's folder, or None for hashing

    @property
    def thresholds(self) -> dict[str, float]:
        return dict(zip(self.evaluation.names, self.evaluation.limits.tolist(), strict=True))

    def tell(self, outputs: Outputs) -> dict[str, Any]:
        described, likely = super().tell(outputs), outputs["probability"].astype(float).tolist()
        return described | {"probabilities": dict(zip(self.evaluation.names, likely, strict=True))}

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """The decoder's attention for the entity that a phrase names, or for the phrase as a description.

        Entities see each other in the decoder, so they are asked for together, as in the evaluation; any other phrase
        is asked for alone beside them.
        """
        patches, grid = self.model.get_image_features(batch["pixel_values"], return_grid=True)
        texts = list(dict.fromkeys(text for asked in phrases for text in asked))
        maps = {text: self._attention(patches, text).unflatten(-1, grid).float().cpu() for text in texts}
        return [{text: maps[text][row] for text in asked} for row, asked in enumerate(phrases)]

    def _attention(self, patches: Tensor, phrase: str) -> Tensor:
        """(B, P), where the decoder looks for a phrase."""
        model, trained, known = self.model, list(self.model.config.entities), list(self.collator.entities)
        name = next((n for n in (phrase, *(e for e, _, _ in extract_triplets(phrase))) if n in known), None)
        if name in trained:
            return model.query(patches)[1][:, trained.index(name)]
        if name is None:
            place, more = len(trained), self._embedding(phrase)[None]
        else:
            held_out = self.evaluation.held_out_embeddings
            assert held_out is not None, name
            place, more = known.index(name), held_out
        beside = torch.cat((model.entity_embeddings, more.to(model.entity_embeddings)))
        return model.query(patches, beside)[1][:, place]

    def _embedding(self, phrase: str) -> Tensor:
        """(text_size,), of a phrase that names no entity of the model."""
        if self.text_encoder is None:
            logger.warning(
                "%r names no finding that %s knows, and its descriptions are embedded by hashing words: the map says "
                "little; it knows %s",
                phrase,
                self.folder,
                ", ".join(self.evaluation.names),
            )
        try:
            return text_embeddings([describe(phrase)], self.text_encoder, self.model.config.text_size)[0]
        except OSError as error:
            raise ValueError(
                f"{phrase!r:.100} names no entity of {self.folder}, and {self.text_encoder}, which embeds other "
                f"texts for "
                f"it, cannot be loaded; name one of {', '.join(self.evaluation.names)}"
            ) from error
