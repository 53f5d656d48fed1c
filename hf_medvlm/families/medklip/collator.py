"""Studies -> batches for MedKLIP: one frontal image, what the report says of each entity, and where it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.collators.pixels import read_pixels
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.labels import MEDKLIP_POSITIONS
from hf_medvlm.language.findings import Triplet, extract_triplets

UNKNOWN, ABSENT, PRESENT = -1, 0, 1
UNMENTIONED = {"ignore": UNKNOWN, "absent": ABSENT}
OPACITIES = frozenset(
    "consolidation edema atelectasis nodule mass lesion infiltrate eumonia aspiration density".split()
)
"""Entities that are opacities: CheXpert's hierarchy (Irvin et al. 2019, arXiv 1901.07031), in MedKLIP's words."""
_RANK = {"absent": 0, "uncertain": 1, "present": 2}
_LABELS = (ABSENT, UNKNOWN, PRESENT)  # by rank; MedKLIP too learns nothing from uncertain mentions


def study_triplets(study: Study) -> list[Triplet]:
    """The study's (entity, position, state): its `triplets` (RadGraph's, say) or those that its report states."""
    return extract_triplets(study.text()) if study.triplets is None else list(study.triplets)


def entity_states(triplets: Sequence[Triplet], entities: Sequence[str], unmentioned: str = "ignore") -> np.ndarray:
    """(E,) int64: 1 present, 0 absent, -1 not known. Present wins over uncertain (not known), uncertain over absent.

    Args:
        unmentioned: what an entity counts as of which nothing is said: "ignore" (not known) or "absent". An opacity is
            not absent where one of `OPACITIES` is present: radiologists name the kind, not the genus.
    """
    ranks: dict[str, int] = {}
    for entity, _, state in triplets:
        ranks[entity] = max(ranks.get(entity, 0), _RANK[state])
    if "opacity" not in ranks and any(ranks.get(kind) == _RANK["present"] for kind in OPACITIES):
        ranks["opacity"] = _RANK["uncertain"]
    return np.array([_LABELS[ranks[e]] if e in ranks else UNMENTIONED[unmentioned] for e in entities], dtype=np.int64)


@dataclass
class FindingsCollator:
    """Reads the frontal image and labels the entities.

    Args:
        image_processor: of the model.
        image_folder: what `StudyImage.path` is relative to.
        entities, positions: names, in the order of the model's embeddings.
        position_samples: K, positions to choose from; one of them is right.
        unmentioned: see `entity_states`.
        training: augment the images (never mirrored: the positions name left and right).

    Raises:
        ValueError: no entities, an unknown `unmentioned`, more samples than positions or fewer than two.

    Example: a study whose report says "Small left effusion. No pneumothorax." and entities effusion, pneumothorax and
        edema give `pixel_values` (1, 3, H, W), `labels` [[1, 0, -1]] and `position_index` (1, 3, 8), in whose first row
        the first number is that of left_pleural.
    """

    image_processor: BaseImageProcessor
    image_folder: str | Path
    entities: Sequence[str]
    positions: Sequence[str] = MEDKLIP_POSITIONS
    position_samples: int = 8
    unmentioned: str = "ignore"
    training: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.entities:
            raise ValueError("the list of entities is empty; name at least one, for example effusion")
        if self.unmentioned not in UNMENTIONED:
            raise ValueError(f"unmentioned must be one of {', '.join(UNMENTIONED)}, got {self.unmentioned!r:.100}")
        if not 2 <= self.position_samples <= len(self.positions):
            raise ValueError(
                f"position_samples must be 2 to {len(self.positions)}, the number of positions, "
                f"got {self.position_samples}"
            )

    def __call__(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        rows = as_rows(items)
        triplets = [study_triplets(row.study) for row in rows]
        labels = [entity_states(of_study, self.entities, self.unmentioned) for of_study in triplets]
        index = [self._sample_positions(row, of_study) for row, of_study in zip(rows, triplets, strict=True)]
        return {
            **self.images(rows),
            "labels": torch.from_numpy(np.stack(labels)),
            "position_index": torch.from_numpy(np.stack(index)),
        }

    def images(self, rows: list[Row]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W) of the frontal images: the part of a batch that needs no text."""
        images = [(row, row.study.frontal) for row in rows]
        return read_pixels(images, self.image_folder, self.image_processor, self.training, self.seed)

    def _sample_positions(self, row: Row, triplets: Sequence[Triplet]) -> np.ndarray:
        """(E, K): for an entity that is present, one of its positions and K - 1 where it is not; else zeros."""
        rng = row.rng(self.seed + 1)  # not the numbers that the augmentation draws
        place = {name: number for number, name in enumerate(self.positions)}
        index = np.zeros((len(self.entities), self.position_samples), dtype=np.int64)
        for number, entity in enumerate(self.entities):
            at = sorted({place[p] for e, p, state in triplets if e == entity and state == "present" and p in place})
            if at:
                elsewhere = np.setdiff1d(np.arange(len(place)), at)
                others = rng.choice(
                    elsewhere, self.position_samples - 1, replace=len(elsewhere) < self.position_samples
                )
                index[number] = [rng.choice(at), *others]
        return index
