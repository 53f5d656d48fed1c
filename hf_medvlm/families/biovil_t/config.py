"""`BioViLTConfig`: sizes, losses and freezing of `BioViLTModel`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, ResNetConfig

from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig
from hf_medvlm.models.declared import check_declared


class BioViLTConfig(PreTrainedConfig):
    """Sizes and losses of a `BioViLTModel`; the defaults are the published BioViL-T's image side.

    Args:
        backbone_config: the ResNet; ResNet-50 by default.
        text_config: the CXR-BERT, or None for a model of images alone.
        temporal: True for BioViL-T, False for BioViL, which takes no previous image.
        norm: "batch" or "group", see the module.
        pooler_dim, pooler_layers, pooler_heads, pooler_mlp_ratio, pooler_dropout, pooler_drop_path: of
            `TemporalPooler`.
        patch_positions: add sine positions to the patches (BioViL-T does not), so that a network without pretraining
            can tell the left base from the right.
        projection_size: D, the width of the joint space.
        global_weight, local_weight: of the contrast of whole studies, and of patches with words.
        evidence_weight: of telling the report from each patch alone, which keeps what a patch shows where it is.
        progression_findings: names of what the progression classifier follows; three logits each, none where empty.
        findings: names of what the finding classifier knows; one logit each, none where empty.
        progression_weight, findings_weight: of their losses.
        fc_classes: outputs of the ImageNet classifier that lies unused in published files, kept for the way back.
    """

    model_type = "biovil_t"
    sub_configs = {"backbone_config": ResNetConfig, "text_config": CXRBertConfig}
    keys_to_ignore_at_inference = ["representations", "loss_terms"]

    backbone_config: Any = None  # a config or its dictionary; a config once built
    text_config: Any = None  # a config or its dictionary; a config once built
    temporal: bool = True
    norm: str = "batch"
    pooler_dim: int = 256
    pooler_layers: int = 3
    pooler_heads: int = 8
    pooler_mlp_ratio: float = 1.0
    pooler_dropout: float = 0.1
    pooler_drop_path: float = 0.25
    patch_positions: bool = False
    projection_size: int = 128
    global_weight: float = 1.0
    local_weight: float = 1.0
    evidence_weight: float = 0.0
    progression_findings: list[str] | tuple[str, ...] = ()
    progression_weight: float = 1.0
    findings: list[str] | tuple[str, ...] = ()
    findings_weight: float = 1.0
    fc_classes: int = 0

    def __post_init__(self, **kwargs) -> None:
        check_declared(self)
        for name, kind in (("backbone_config", ResNetConfig), ("text_config", CXRBertConfig)):
            if isinstance(getattr(self, name), dict):
                setattr(self, name, kind(**getattr(self, name)))
        self.backbone_config = self.backbone_config or ResNetConfig()
        if self.norm not in ("batch", "group"):
            raise ValueError(f'norm must be "batch" or "group", got {self.norm!r:.100}')
        if self.text_config is not None and self.text_config.projection_size != self.projection_size:
            raise ValueError(
                f"images are projected to {self.projection_size} numbers but texts to "
                f"{self.text_config.projection_size}; both must have the same projection_size"
            )
        super().__post_init__(**kwargs)
