"""Options of the patch bottleneck, over the published settings of its variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_medvlm.families.dual_encoder import recipe as pairing
from hf_medvlm.families.dual_encoder.recipe import PairArguments
from hf_medvlm.families.patch_ib.config import variant_options
from hf_medvlm.training.arguments import option

OVERRIDES = (
    "anneal_steps", "adaptive", "mask", "gumbel_steps", "alignment", "alignment_weight", "alignment_warmup",
    "masked_weight", "sparsity_weight", "sparsity_target", "consistency_weight", "filip_weight", "probe_weight",
    "evidence_weight",
)  # fmt: skip
TINY = pairing.TINY | {"max_steps": 500}  # a bottleneck's evaluation costs more
LISTS = {"keep": float, "keep_start": float, "drop_layers": int}

# The published schedules are longer than a tiny run, and half of 36 patches says little of where the model looks.
_SHORT = {"keep": 0.1, "keep_start": 0.5, "anneal_steps": 300}
_TAUGHT = {"filip_weight": 0.1, "sparsity_weight": 0.0, "evidence_weight": 1.0}
TINY_SCHEDULE: dict[str, dict[str, Any]] = {"D": _SHORT, "E": _SHORT | _TAUGHT, "G": {"anneal_steps": 300}}


@dataclass
class PatchArguments(PairArguments):
    """`PairArguments` with the bottleneck; what is not given comes from the variant."""

    variant: str = option(
        "A", "A to H, see hf_medvlm/families/patch_ib/model.py; its published settings are the defaults below"
    )
    depth: int = option(
        4, "blocks of the image tower, by which the drops are placed: 12 for ViT-B, 4 for the tiny model"
    )
    keep: str | None = option(None, "share of patches to keep; for G two, separated by a comma")
    keep_start: str | None = option(None, "share of patches kept at the start of training, annealed to --keep")
    anneal_steps: int | None = option(None, "optimizer steps in which --keep_start goes over into --keep")
    drop_layers: str | None = option(None, "blocks after which patches are dropped, separated by commas")
    adaptive: bool | None = option(None, "variant F: keep every patch that fits the report better than half of them")
    mask: str | None = option(None, "how variant C masks patches: threshold or gumbel")
    gumbel_steps: int | None = option(None, "steps in which variant C's Gumbel temperature falls from 1 to 0.1")
    alignment: str | None = option(None, "alignment loss of the variants B to D: mse or cosine")
    alignment_weight: float | None = option(None, "weight of the alignment loss after --alignment_warmup steps")
    alignment_warmup: int | None = option(None, "optimizer steps until the alignment loss has its full weight")
    masked_weight: float | None = option(None, "weight of the contrast of the chosen patches")
    sparsity_weight: float | None = option(None, "weight of the squared distance of the share kept from its target")
    sparsity_target: float | None = option(None, "share of patches that --sparsity_weight pulls to; --keep by default")
    consistency_weight: float | None = option(None, "weight of the difference between chosen and whole image")
    filip_weight: float | None = option(None, "weight of FILIP on the final patches")
    probe_weight: float | None = option(None, "weight of FILIP where patches are chosen by the report")
    evidence_weight: float | None = option(
        None,
        "E: weight of learning the importance from what each patch, alone, tells of the report; 1 for a tiny model on "
        "synthetic studies",
    )

    def model_options(self, synthetic: bool = True) -> dict[str, Any]:
        options = super().model_options() | variant_options(self.variant, self.depth)
        if self.model_name_or_path is None and synthetic:
            options |= TINY_SCHEDULE.get(self.variant, {})
        options |= {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        for name, kind in LISTS.items():
            if getattr(self, name) is not None:
                options[name] = [kind(part) for part in getattr(self, name).split(",")]
        return options
