"""`PatchIBConfig`: which patch bottleneck, and the published settings of its variants A to H."""

from __future__ import annotations

from typing import Any

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig

VARIANTS = "ABCDEFGH"


class PatchIBConfig(DualEncoderConfig):
    """`DualEncoderConfig` with the bottleneck; `variant_options` gives each variant's published settings.

    Args:
        variant: "A" to "H".
        keep: share of the patches that D to G keep; for G one at each drop, of those that came there.
        keep_start, anneal_steps: training goes from that share to `keep` in so many steps.
        drop_layers: blocks after which E to H choose.
        adaptive: F keeps every patch that fits better than half (sigmoid(5 s) > 0.5) instead of a fixed share.
        mask: C's mask, "threshold" or "gumbel"; gumbel_steps: in which its temperature falls from 1 to 0.1.
        alignment: B's to D's, "mse", "cosine" or None; alignment_weight, alignment_warmup (steps), alignment_heads.
        masked_weight, sparsity_weight, sparsity_target, consistency_weight, filip_weight, probe_weight: of the terms.
            Without `sparsity_target` it is the share kept.
        evidence_weight: of E's own estimate of what each patch, alone, tells of the report, from which the importance
            is then learnt. The published E has none: its patches exchange what they know before one is dropped, so
            that a patch is kept for what it has heard, not for what it shows.

    Raises:
        ValueError: an unknown variant, a share outside (0, 1], drops that do not fit the tower or each other.
    """

    model_type = "patch_ib"
    variant: str = "A"
    keep: Any = (0.5,)  # one share or several; a tuple once built
    keep_start: Any = None
    anneal_steps: int = 0
    drop_layers: list[int] | tuple[int, ...] = ()
    adaptive: bool = False
    mask: str = "threshold"
    gumbel_steps: int = 5000
    alignment: str | None = None
    alignment_weight: float = 0.0
    alignment_warmup: int = 500
    alignment_heads: int = 4
    masked_weight: float = 0.0
    sparsity_weight: float = 0.0
    sparsity_target: float | None = None
    consistency_weight: float = 0.0
    filip_weight: float = 0.0
    probe_weight: float = 0.0
    evidence_weight: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.keep = _shares(self.keep)
        self.keep_start = _shares(self.keep_start) if self.keep_start is not None else self.keep
        if self.variant not in VARIANTS or len(self.variant) != 1:
            raise ValueError(f"variant must be one letter of {VARIANTS}, got {self.variant!r:.100}")
        for name in ("keep", "keep_start"):
            for share in getattr(self, name):
                if not 0 < share <= 1:
                    raise ValueError(f"{name} is the share of patches that go on, above 0 and at most 1, got {share}")
        if len(self.keep_start) != len(self.keep):
            raise ValueError(f"keep_start has {len(self.keep_start)} shares for the {len(self.keep)} of keep")
        for name, value, known in (
            ("mask", self.mask, ("threshold", "gumbel")),
            ("alignment", self.alignment, (None, "mse", "cosine")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r:.100}")
        self._check_drops()

    def _check_drops(self) -> None:
        if self.adaptive and self.variant != "F":
            raise ValueError(f"adaptive keeps as many patches as fit the report, in variant F; not in {self.variant}")
        if self.alignment and self.variant not in "BCD":
            raise ValueError(f"alignment belongs to the variants B, C and D, not to {self.variant}")
        if self.evidence_weight and self.variant != "E":
            raise ValueError(f"evidence_weight teaches the importance of variant E, not of {self.variant}")
        if self.variant not in "EFGH":
            return
        if getattr(self.vision_config, "model_type", None) != "vit":
            raise ValueError(
                f"variant {self.variant} drops patches between the blocks of a ViT; this image tower is a "
                f"{self.vision_config.model_type}, whose patches form no grid of tokens to drop. Take a ViT, or A to D"
            )
        wanted, depth = 2 if self.variant == "G" else 1, self.vision_config.num_hidden_layers
        drops = list(self.drop_layers)
        if len(drops) != wanted or drops != sorted(set(drops)) or not all(0 < layer < depth for layer in drops):
            raise ValueError(
                f"variant {self.variant} takes {wanted} drop layer(s), rising, between 1 and {depth - 1}, got {drops}"
            )
        if len(self.keep) != wanted:
            raise ValueError(f"variant {self.variant} takes {wanted} share(s) to keep, got {list(self.keep)}")


def _shares(keep: Any) -> tuple[float, ...]:
    return tuple(keep) if isinstance(keep, (list, tuple)) else (float(keep),)


def variant_options(variant: str, depth: int) -> dict[str, Any]:
    """The published settings of a variant as options of `PatchIBConfig`, the drops moved to a tower of `depth` blocks.

    Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce; published for a depth of 12.
    """

    def after(block: int) -> int:
        return max(1, round(block * depth / 12))

    local = {"alignment": "mse", "alignment_weight": 100.0}
    masked = {"masked_weight": 1.0, "consistency_weight": 1.0}
    by_text = {"masked_weight": 0.5, "probe_weight": 0.3, "filip_weight": 0.3}
    options: dict[str, dict[str, Any]] = {
        "A": {},
        "B": {"alignment": "cosine", "alignment_weight": 5.0},
        "C": local | masked | {"sparsity_weight": 10.0, "sparsity_target": 0.5},
        "D": local | masked | {"sparsity_weight": 5.0, "keep": 0.25, "keep_start": 0.5, "anneal_steps": 6666},
        "E": {"drop_layers": [after(6)], "keep": 0.5, "keep_start": 0.75, "anneal_steps": 5000}
        | {"sparsity_weight": 1.0, "filip_weight": 0.3},
        "F": by_text | {"drop_layers": [after(6)], "keep": 0.5},
        "G": by_text
        | {"drop_layers": [after(4), after(9)], "keep": [0.75, 0.67], "keep_start": [0.9, 0.85], "anneal_steps": 5000},
        "H": by_text | {"drop_layers": [after(6)], "sparsity_weight": 2.0, "sparsity_target": 0.5},
    }
    if variant not in options:
        raise ValueError(f"variant must be one letter of {VARIANTS}, got {variant!r:.100}")
    return {"variant": variant} | options[variant]
