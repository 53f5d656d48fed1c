"""What each family's `forward` returns: `ModelOutput` classes with shapes on the fields.

B studies, V views, P patches, T tokens, D joint width, E entities, C classes. `loss_terms` holds the detached
summands of `loss` by name; the trainer logs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class CXRBertOutput(ModelOutput):
    """Output of `CXRBertModel`, with the field names of hi-ml-multimodal."""

    last_hidden_state: Tensor | None = None  # (B, T, hidden)
    logits: Tensor | None = None  # (B, T, vocabulary), of the masked-language head
    cls_projected_embedding: Tensor | None = None  # (B, D), not normalised


@dataclass
class BioViLTImageFeatures(ModelOutput):
    """What `BioViLTModel.get_image_features` returns, with the field names of hi-ml-multimodal; nothing is
    normalised.
    """

    img_embedding: Tensor | None = None  # (B, F): `patch_embeddings` averaged over the grid
    patch_embeddings: Tensor | None = None  # (B, F, h, w); the second half of F tells of the previous image
    projected_patch_embeddings: Tensor | None = None  # (B, D, h, w)
    projected_global_embedding: Tensor | None = None  # (B, D): `projected_patch_embeddings` averaged over the grid


@dataclass
class BioViLTOutput(ModelOutput):
    """Output of `BioViLTModel.forward`."""

    loss: Tensor | None = None  # (), the sum of `loss_terms`
    loss_terms: dict[str, Tensor] | None = None  # global, local, progression, findings: those that the batch allows
    image_embeds: Tensor | None = None  # (B, D), normalised
    text_embeds: Tensor | None = None  # (B, D), normalised
    patch_embeds: Tensor | None = None  # (B, D, h, w), normalised over D
    logits_per_image: Tensor | None = None  # (B, B)
    progression_logits: Tensor | None = None  # (B, number of progression findings, 3)
    finding_logits: Tensor | None = None  # (B, number of findings)
    representations: dict[str, Tensor] | None = None  # what the loss is a function of: `BioViLTModel.loss_terms_of`


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output of `DualEncoderModel` and `PatchIBModel`; the last four are the bottleneck's."""

    loss: Tensor | None = None  # (), None without `pair_ids`
    loss_terms: dict[str, Tensor] | None = None
    logits_per_image: Tensor | None = None  # (B, B), scaled
    image_embeds: Tensor | None = None  # (B, D), normalised
    text_embeds: Tensor | None = None  # (B, D), normalised
    representations: dict[str, Tensor] | None = None  # all that the loss is a function of: rows (B, ...) and scalars ()
    salience: Tensor | None = None  # (B, rows, columns) in [0, 1], how much each patch counts
    kept: Tensor | None = None  # (B, rows, columns), 1 where the patch went on


@dataclass
class MedKlipOutput(ModelOutput):
    """Output of `MedKlipModel`."""

    loss: Tensor | None = None  # (), the sum of `loss_terms`
    loss_terms: dict[str, Tensor] | None = None  # existence, position, semantic, with their weights
    loss_sums: dict[str, Any] | None = None  # the same before division: name -> ("labelled" or "present", sum ())
    logits: Tensor | None = None  # (B, E, 2), absent and present
    location_maps: Tensor | None = None  # (B, E, P): where each entity looked, sums to 1 over P, mean of the layers
