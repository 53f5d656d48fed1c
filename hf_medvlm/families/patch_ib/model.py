"""`PatchIBModel`: a dual encoder whose image side may pass on only some of its patches, variants A to H by
configuration.

A  the dual encoder itself               B  + each text token finds itself again in the patches
C  + a learnt mask over the final patches   D  the same with exactly k patches
E  after a block, only the k best patches go on        F  the same, chosen by the report
G  two such drops                        H  all go on, scaled by how well they fit the report

A hard drop (E, F, G) takes the tokens out of the sequence: the blocks behind it cost what is left. F, G and H choose
by the report, so they embed an image twice: whole (`image_embeds`, which retrieval uses) and chosen
(`masked_image_embeds`).

Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce. Knows no files, no tokenizer and no optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from hf_medvlm import losses
from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.patch_ib.config import PatchIBConfig
from hf_medvlm.models.convert.checkpoint import load_weights
from hf_medvlm.models.encoding import encode_image, encode_text, patch_grid
from hf_medvlm.models.heads import CrossAttention, MaskHead, gumbel_mask, projection, threshold_mask, top_k_mask
from hf_medvlm.models.towers import hidden_size

SHARPNESS = 5.0  # of the sigmoid that turns a cosine into a gate


class PatchIBModel(DualEncoderModel):
    """The dual encoder with a patch bottleneck. `set_step` tells it how far training has come."""

    config_class = PatchIBConfig
    config: PatchIBConfig
    vision_tower: Any  # a ViT, whose embeddings and blocks are run one by one
    base_model_prefix = "patch_ib"
    ours_alone = ("logit_bias", "mask_head.*", "probes.*", "alignment.*", "evidence.*")

    def __init__(self, config: PatchIBConfig) -> None:
        super().__init__(config)
        width, joint = hidden_size(config.vision_config), config.projection_size
        if config.variant in "CDE":
            self.mask_head = MaskHead(width, normalize=config.variant == "E")
        if config.evidence_weight:
            self.evidence = nn.Sequential(nn.LayerNorm(width), projection("mlp", width, joint))
        if config.variant in "FGH":
            self.probes = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, joint, bias=False)) for _ in config.drop_layers
            )
        if config.alignment:
            self.alignment = CrossAttention(joint, config.alignment_heads)
        self.step = 0
        self.post_init()
        self.apply_freezing()

    @classmethod
    def from_dual_encoder(cls, model: DualEncoderModel, **options: Any) -> PatchIBModel:
        """A bottleneck on top of a trained dual encoder: its towers, projections and scale, and new heads.

        Args:
            options: of `PatchIBConfig`.
        """
        config = model.config.to_dict()
        for name in ("model_type", "architectures", "transformers_version", "dtype"):
            config.pop(name, None)
        bottleneck = cls(PatchIBConfig(**(config | options)))
        load_weights(bottleneck, model.state_dict(), ignorable=cls.ours_alone, what="the dual encoder")
        return bottleneck

    def set_step(self, step: int) -> None:
        """Tell the schedules (share kept, Gumbel temperature, alignment weight) how many optimizer steps are done."""
        self.step = step

    def _progress(self, steps: int) -> float:
        """0 at the start of training, 1 after `steps`; outside training 1."""
        return min(1.0, self.step / steps) if self.training and steps else 1.0

    def kept_count(self, patches: int, drop: int = 0) -> int:
        """How many of `patches` go on at a drop, at this step.

        Raises:
            ValueError: none would.
        """
        start, end = self.config.keep_start[drop], self.config.keep[drop]
        count = round(patches * (start + (end - start) * self._progress(self.config.anneal_steps)))
        if count < 1:
            raise ValueError(f"keep={end} of {patches} patches keeps none; raise --keep to at least {1 / patches:.4f}")
        return count

    # -- the image side ------------------------------------------------------------------------------------------------

    def get_image_features(self, pixel_values: Tensor, **patches_of: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, D), projected, not normalised; without a text: E drops, all others see the whole
        image.
        """
        if self.config.variant != "E":
            return super().get_image_features(pixel_values, **patches_of)
        hidden, _ = self._embed(pixel_values)
        return self.vision_projection(self._drop_by_head(hidden)[0][:, 0])

    def _embed(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1 + P, H) in front of the first block, and the grid of the P patches."""
        hidden = self.vision_tower.embeddings(pixel_values.to(self.dtype))
        height, width = pixel_values.shape[2:]
        return hidden, patch_grid(hidden.shape[1], (height, width), self.config.vision_config)[0]

    def _run_blocks(self, hidden: Tensor, start: int, stop: int | None, valid: Tensor | None = None) -> Tensor:
        """Blocks [start, stop) over tokens (B, N, H); `valid` (B, N) hides tokens from attention."""
        mask = None
        if valid is not None:
            mask = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, float("-inf"))[:, None, None]
        for layer in self.vision_tower.layers[start:stop]:
            hidden = layer(hidden, mask)
        return hidden

    def _drop_by_head(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E's path: normed tokens (B, 1 + k, H) at the end, importance logits (B, P), mask (B, P)."""
        layer = self.config.drop_layers[0]
        hidden = self._run_blocks(hidden, 0, layer)
        logits = self.mask_head(hidden[:, 1:])
        mask = top_k_mask(logits, self.kept_count(logits.shape[1]))
        hidden, _, _ = _keep(hidden, mask, logits)
        return self.vision_tower.layernorm(self._run_blocks(hidden, layer, None)), logits, mask

    # -- everything the loss needs -------------------------------------------------------------------------------------

    def represent(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **patches_of: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        text = encode_text(self.text_tower, input_ids, attention_mask, self.config.text_pooling)
        rows = {"text_embeds": self._normalized(self.text_projection(text.pooled))} | self.scalars()
        if self.config.variant in "FGH" or self.config.alignment or self._has_local_loss:
            rows["token_embeds"] = self.text_projection(text.tokens).float()  # (B, T, D)
            rows["token_mask"] = attention_mask
        branch = self._whole if self.config.variant in "ABCD" else self._dropped
        return rows, branch(rows, pixel_values)

    @property
    def _has_local_loss(self) -> bool:
        return bool(self.config.filip_weight or self.config.local_loss)

    @staticmethod
    def _normalized(features: Tensor) -> Tensor:
        return F.normalize(features.float(), dim=-1)

    def _whole(self, rows: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
        """A to D: the whole tower, then perhaps a mask over its patches."""
        config = self.config
        image = encode_image(self.vision_tower, pixel_values)
        patches = self.vision_projection(image.patches).float()  # (B, P, D)
        rows["image_embeds"] = self._normalized(self.vision_projection(image.pooled))
        kept = None
        if config.variant in "CD":
            logits = self.mask_head(image.patches)
            kept = self._mask(logits)
            pooled = (image.patches * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1.0)
            rows["masked_image_embeds"] = self._normalized(self.vision_projection(pooled))
            rows["importance"] = logits.float()
            salience = logits.sigmoid()
        else:
            salience = (1 + torch.einsum("bpd,bd->bp", self._normalized(patches), rows["text_embeds"])) / 2
        if config.alignment:
            self._align(rows, patches, kept)
        if self._has_local_loss:
            rows["patch_embeds"] = patches
        kept = torch.ones_like(salience) if kept is None else kept
        return {"salience": salience.unflatten(1, image.grid), "kept": kept.detach().unflatten(1, image.grid)}

    def _mask(self, logits: Tensor) -> Tensor:
        if self.config.variant == "D":
            return top_k_mask(logits, self.kept_count(logits.shape[1]))
        if self.config.mask == "gumbel" and self.training:
            return gumbel_mask(logits, 1.0 - 0.9 * self._progress(self.config.gumbel_steps))
        return threshold_mask(logits)

    def _align(self, rows: dict[str, Tensor], patches: Tensor, kept: Tensor | None) -> None:
        """Add each report's summed distance (B,) of its tokens from what they gather in the patches that are kept."""
        if kept is not None:
            patches = patches * kept[..., None]  # carries the gradient to the mask
            kept = (kept.detach() > 0.5) | (kept.detach() < 0.5).all(
                1, keepdim=True
            )  # where none is kept, all are seen
        patches = patches.to(self.dtype)
        aligned = self.alignment(rows["token_embeds"].to(self.dtype), patches, kept)
        kind = str(self.config.alignment)  # one of the two losses, or `_align` is not called
        distance = losses.token_distance(aligned.float(), rows["token_embeds"], kind)
        rows["alignment"] = (distance * rows["token_mask"]).sum(1)
        rows["alignment_tokens"] = rows["token_mask"].sum(1)

    def _dropped(self, rows: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
        """E to H: patches are chosen between two blocks."""
        config = self.config
        hidden, grid = self._embed(pixel_values)
        if config.variant == "E":
            final, logits, kept = self._drop_by_head(hidden)
            rows["image_embeds"] = self._normalized(self.vision_projection(final[:, 0]))
            if self._has_local_loss:
                rows["patch_embeds"] = self.vision_projection(final[:, 1:]).float()
            rows["importance"] = logits.float()
            if config.evidence_weight:
                rows["evidence_embeds"] = self._normalized(self.evidence(hidden[:, 1:]))
            return {"salience": logits.sigmoid().unflatten(1, grid), "kept": kept.detach().unflatten(1, grid)}
        first = config.drop_layers[0]
        hidden = self._run_blocks(hidden, 0, first)
        whole = self.vision_tower.layernorm(self._run_blocks(hidden, first, None))
        rows["image_embeds"] = self._normalized(self.vision_projection(whole[:, 0]))
        final, valid, salience, kept = self._choose(rows, hidden)
        rows["masked_image_embeds"] = self._normalized(self.vision_projection(final[:, 0]))
        if self._has_local_loss:
            rows["patch_embeds"] = self.vision_projection(final[:, 1:]).float()
            rows["patch_mask"] = valid[:, 1:].long()
        return {"salience": salience.unflatten(1, grid), "kept": kept.unflatten(1, grid)}

    def _choose(self, rows: dict[str, Tensor], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F to H from the first drop on: final tokens (B, 1 + k, H), which of them count, salience and kept (B, P)."""
        config, batch, patches = self.config, hidden.shape[0], hidden.shape[1] - 1
        valid = hidden.new_ones(batch, 1 + patches, dtype=torch.bool)
        places = torch.arange(patches, device=hidden.device).expand(batch, -1)  # where the tokens stood at first
        salience = kept = hidden.new_zeros(batch, patches)
        for drop, layer in enumerate(config.drop_layers):
            embeds = self.probes[drop](hidden[:, 1:]).float()
            rows[f"probe_embeds/{drop}"] = embeds
            logits = SHARPNESS * _best_token(embeds, rows["token_embeds"], rows["token_mask"])
            rows["importance" if not drop else f"importance/{drop}"] = logits
            if not drop:
                salience, kept = logits.sigmoid(), torch.ones_like(logits)
            if config.variant == "H":
                gates = logits.sigmoid().to(hidden.dtype)
                hidden = torch.cat([hidden[:, :1], hidden[:, 1:] * gates[..., None]], dim=1)
                kept = (logits > 0).to(kept.dtype)
            else:
                count = self.kept_count(logits.shape[1], drop)
                mask = threshold_mask(logits) if config.adaptive else top_k_mask(logits, count)
                hidden, order, counts = _keep(hidden, mask, logits)
                places = places.gather(1, order)
                here = torch.arange(order.shape[1], device=hidden.device) < counts[:, None]
                valid = torch.cat([valid[:, :1], here], dim=1)
                kept = torch.zeros_like(kept).scatter(1, places, here.to(kept.dtype))
            stop = config.drop_layers[drop + 1] if drop + 1 < len(config.drop_layers) else None
            hidden = self._run_blocks(hidden, layer, stop, None if valid.all() else valid)
        return self.vision_tower.layernorm(hidden), valid, salience, kept

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _terms(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        config, terms = self.config, super()._terms(rows)
        if config.masked_weight:
            terms["masked"] = config.masked_weight * self.contrast(rows, "masked_image_embeds")
        if config.sparsity_weight:
            for name in [name for name in rows if name.startswith("importance")]:
                drop = int(name.partition("/")[2] or 0)
                target = config.keep[drop] if config.sparsity_target is None else config.sparsity_target
                term = losses.sparsity(rows[name], target)
                terms[name.replace("importance", "sparsity")] = config.sparsity_weight * term
        if config.consistency_weight:
            embeds = rows["image_embeds"], rows["masked_image_embeds"], rows["text_embeds"]
            terms["consistency"] = config.consistency_weight * losses.consistency(*embeds, rows["logit_scale"])
        if config.alignment_weight:
            weight = config.alignment_weight * self._progress(config.alignment_warmup)
            terms["alignment"] = weight * rows["alignment"].sum() / rows["alignment_tokens"].sum()
        if config.filip_weight:
            terms["filip"] = config.filip_weight * self._filip(rows, "patch_embeds", rows.get("patch_mask"))
        if config.probe_weight:
            for drop in range(len(config.drop_layers)):
                terms[f"probe/{drop}"] = config.probe_weight * self._filip(rows, f"probe_embeds/{drop}")
        if config.evidence_weight:
            embeds = rows["evidence_embeds"], rows["text_embeds"], rows["logit_scale"]
            evidence = losses.patch_evidence(*embeds, targets=self.targets_of(rows))
            terms["evidence"] = -config.evidence_weight * evidence.mean()
            terms["importance"] = config.evidence_weight * F.mse_loss(rows["importance"], evidence.detach())
        return terms

    def _filip(self, rows: dict[str, Tensor], patches: str, patch_mask: Tensor | None = None) -> Tensor:
        tokens = rows["token_embeds"], rows["token_mask"], rows["logit_scale"]
        return losses.filip(rows[patches], *tokens, targets=self.targets_of(rows), patch_mask=patch_mask)


def _best_token(patches: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
    """(B, P) cosine of each patch (B, P, D) with the valid token (B, T, D) of its own report that fits it best."""
    scores = F.normalize(patches, dim=-1) @ F.normalize(tokens, dim=-1).mT
    return scores.masked_fill(~token_mask.bool()[:, None], float("-inf")).amax(-1)


def _keep(hidden: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the patches out of the sequence that `mask` (B, P) leaves out, the best first where rows keep different
    numbers.

    Returns:
        Tokens (B, 1 + k, H), where k is the most that a row keeps; the kept patches' places (B, k); how many count
        (B,). The class token stays. Kept tokens carry the mask's gradient.
    """
    count = (mask.detach() > 0.5).sum(1).clamp(min=1)
    order = logits.topk(int(count.max()), dim=1).indices
    if bool((count == count[0]).all()):
        order = order.sort(dim=1).values  # in the order of the grid, as they stood
    chosen = hidden[:, 1:].gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    gates = mask.gather(1, order).to(hidden.dtype)
    gates = gates + (1 - gates).detach()  # the value 1, the gradient of the mask
    return torch.cat([hidden[:, :1], chosen * gates[..., None]], dim=1), order, count


AutoConfig.register(PatchIBConfig.model_type, PatchIBConfig)
AutoModel.register(PatchIBConfig, PatchIBModel)
