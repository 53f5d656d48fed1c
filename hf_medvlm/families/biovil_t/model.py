"""BioViL-T and BioViL: a ResNet over the current and the previous radiograph, and CXR-BERT over the report.

Knows neither files of pixels nor tokenizers. What public code lacks and this has: training, by global and local
contrast and by progression and finding labels, on studies with and without a previous image in one batch.

Bannur et al. 2023 (arXiv 2301.04558) and Boecking et al. 2022 (arXiv 2204.09817); reference:
microsoft/hi-ml-multimodal.

Normalisation. Batch statistics would tie a study's features to its neighbours, so that one batch, accumulated
micro-batches and several processes would train three different models. Hence `norm="batch"` (the published networks)
uses its running statistics in training too, as fine-tuned detectors do, while scale and shift are trained; and
`norm="group"` (Wu & He 2018), for networks trained from nothing, whose running statistics would say nothing, has none.
From the last stage on it normalises the channels of each place alone, as ConvNeXt does (Liu et al. 2022): a group norm
mixes statistics across positions, so patch features would no longer be local.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ResNetConfig,
    ResNetModel,
)
from transformers import initialization as init

from hf_medvlm.families.biovil_t.config import BioViLTConfig
from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig, CXRBertModel
from hf_medvlm.families.biovil_t.published import FC, from_published, published_sizes, read_published
from hf_medvlm.families.biovil_t.temporal import TemporalPooler
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.losses import duplicate_targets, gloria_local, info_nce, patch_evidence
from hf_medvlm.models.contrast import add_loss
from hf_medvlm.models.convert.checkpoint import load_weights
from hf_medvlm.models.norms import ChannelNorm, replace_batch_norms
from hf_medvlm.models.outputs import BioViLTImageFeatures, BioViLTOutput
from hf_medvlm.models.positions import detr_positions
from hf_medvlm.models.towers import KeepsFrozen, freeze

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound
PROGRESSIONS = 3  # improving, stable, worsening
OURS_ALONE = ("logit_scale", "progression_head.*", "findings_head.*")  # no published file has these


class BioViLTModel(KeepsFrozen, PreTrainedModel):
    """Images of now and before, and reports, in one space; and classifiers of what changed and of what is seen."""

    config_class = BioViLTConfig
    config: BioViLTConfig
    base_model_prefix = "biovil_t"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    part_modules = {"vision": ("backbone",), "language": ("text_model",)}
    # the classifier of a new task begins at random
    _keys_to_ignore_on_load_missing = [r"^progression_head\.", r"^findings_head\."]

    fc_weight: Tensor
    fc_bias: Tensor

    def __init__(self, config: BioViLTConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.backbone = ResNetModel(config.backbone_config)
        channels = backbone_channels = config.backbone_config.hidden_sizes[-1]
        if config.temporal:
            self.backbone_to_vit = nn.Conv2d(channels, config.pooler_dim, kernel_size=1, bias=False)
            self.missing_previous_emb = nn.Parameter(torch.zeros(1, config.pooler_dim, 1, 1))
            self.vit_pooler = TemporalPooler(
                config.pooler_dim,
                config.pooler_layers,
                config.pooler_heads,
                config.pooler_mlp_ratio,
                config.pooler_dropout,
                config.pooler_drop_path,
            )
            channels = 2 * config.pooler_dim
        width = config.projection_size
        self.projector = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=1),
        )
        if config.norm == "group":
            for module in (self.backbone.encoder.stages[-1], self.projector):
                replace_batch_norms(module, ChannelNorm)
            replace_batch_norms(self)
        if config.fc_classes:
            self.register_buffer("fc_weight", torch.zeros(config.fc_classes, backbone_channels))
            self.register_buffer("fc_bias", torch.zeros(config.fc_classes))
        if config.text_config is not None:
            self.text_model = CXRBertModel(config.text_config)
            self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # DeepSpeed takes no 0-dim one
        if config.progression_findings:
            self.progression_head = nn.Linear(channels, PROGRESSIONS * len(config.progression_findings))
        if config.findings:
            self.findings_head = nn.Linear(channels, len(config.findings))
        self.post_init()
        self.apply_freezing()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):  # the usual 0.02 is made for wide layers, and mutes narrow ones
            fan_in = (
                module.in_features if isinstance(module, nn.Linear) else module.in_channels * module.kernel_size[0] ** 2
            )
            init.normal_(module.weight, std=fan_in**-0.5)
        elif isinstance(module, TemporalPooler):
            init.normal_(module.type_embed, std=0.02)
        elif module is self:
            if self.config.temporal:
                init.normal_(self.missing_previous_emb, std=0.02)
            if self.config.text_config is not None:
                init.constant_(self.logit_scale, math.log(1 / 0.07))
            for head in ("progression_head", "findings_head"):  # begin undecided, not confidently wrong
                if hasattr(self, head):
                    init.zeros_(getattr(self, head).weight)
            if self.config.fc_classes:
                init.zeros_(self.fc_weight)
                init.zeros_(self.fc_bias)

    def apply_freezing(self) -> None:
        """No gradient for what no loss of this model reaches."""
        if self.config.text_config is None:
            freeze(self.projector)
        else:
            head = self.text_model.cls.predictions  # its decoder shares the word embeddings, which are trained
            for unused in (head.transform, head.bias, head.decoder.bias):
                unused.requires_grad_(False)

    def forward(
        self,
        pixel_values: Tensor,
        previous_pixel_values: Tensor | None = None,
        has_previous: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pair_ids: Tensor | None = None,
        progression: Tensor | None = None,
        findings: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> BioViLTOutput:
        """Features of a batch of studies and, where it holds `pair_ids`, the loss.

        Args:
            pixel_values, previous_pixel_values: (B, 3, H, W), in [0, 1]; rows without a previous image are not read.
            has_previous: (B,), bool; by default every row has one where `previous_pixel_values` is given.
            input_ids, attention_mask: (B, T), the reports.
            pair_ids: (B,), equal for rows whose reports are the same. With them there is a loss, in training over the
                rows of all processes: of the contrast where there is text, and of the labels that are given.
            progression: (B, number of progression findings), 0 improving, 1 stable, 2 worsening, or `IGNORE_INDEX`.
            findings: (B, number of findings), 1, 0 or `IGNORE_INDEX`.
            labels: (B,), each study's place in its split. Not read: a stock trainer evaluates only batches that have
                labels, and hands them to `compute_metrics`.
        """
        rows = self.represent(pixel_values, previous_pixel_values, has_previous, input_ids, attention_mask)
        output = BioViLTOutput(
            image_embeds=rows["image_embeds"],
            text_embeds=rows.get("text_embeds"),
            patch_embeds=rows["patch_embeds"],
            progression_logits=rows.get("progression_logits"),
            finding_logits=rows.get("finding_logits"),
        )
        if input_ids is not None:
            output.logits_per_image = rows["logit_scale"] * rows["image_embeds"] @ rows["text_embeds"].mT
        targets = {"progression": progression, "findings": findings}
        rows |= {name: value for name, value in targets.items() if value is not None}
        output.representations = rows
        if pair_ids is not None:
            add_loss(output, rows | {"pair_ids": pair_ids}, self.loss_terms_of, self.training)
        return output

    def represent(
        self,
        pixel_values: Tensor,
        previous_pixel_values: Tensor | None = None,
        has_previous: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All that the loss is a function of: one row a study, independent of the others, and the learnt scale, ()."""
        features: Any = self.get_image_features(pixel_values, previous_pixel_values, has_previous)
        rows = {
            "image_embeds": normalize(features.projected_global_embedding.float(), dim=-1),
            "patch_embeds": normalize(features.projected_patch_embeddings.float(), dim=1),
        }
        if self.config.progression_findings:
            logits = self.progression_head(features.img_embedding).float()
            rows["progression_logits"] = logits.unflatten(1, (-1, PROGRESSIONS))
        if self.config.findings:
            rows["finding_logits"] = self.findings_head(features.img_embedding).float()
        if input_ids is not None:
            text_model = self._text_model()
            tokens = text_model.project(text_model.encode(input_ids, attention_mask)).float()  # (B, T, D)
            rows |= {"text_embeds": normalize(tokens[:, 0], dim=-1), "token_embeds": normalize(tokens, dim=-1)}
            rows["token_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            rows["logit_scale"] = self.scale
        return rows

    @property
    def scale(self) -> Tensor:
        """(), the inverse temperature, bounded. Under ZeRO-3 it can be read only inside `forward`."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().float().reshape(())

    def loss_terms_of(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms that sum to the loss, by name, as far as `rows` holds what they need.

        Args:
            rows: `representations` of the whole global batch, its labels among them. Reads the configuration alone, so
                that it runs on gathered or cached rows.
        """
        terms, config = {}, self.config
        if "text_embeds" in rows:
            terms["global"] = config.global_weight * self.contrast(rows)
            patches = rows["patch_embeds"].flatten(2).mT  # (B, P, D)
            if config.local_weight:
                words = rows["token_mask"].sum(1) - 1  # all but [SEP], as GLoRIA counts
                image_to_text, text_to_image = gloria_local(patches, rows["token_embeds"], words)
                terms["local"] = config.local_weight * (image_to_text + text_to_image) / 2
            if config.evidence_weight:
                targets = duplicate_targets(rows["pair_ids"])
                evidence = patch_evidence(patches, rows["text_embeds"], rows["logit_scale"], targets=targets)
                terms["evidence"] = -config.evidence_weight * evidence.mean()
        if "progression" in rows and "progression_logits" in rows:
            labels = rows["progression"].flatten()
            total = cross_entropy(
                rows["progression_logits"].flatten(0, 1), labels, ignore_index=IGNORE_INDEX, reduction="sum"
            )
            terms["progression"] = config.progression_weight * total / (labels != IGNORE_INDEX).sum().clamp(min=1)
        if "findings" in rows and "finding_logits" in rows:
            known = rows["findings"] != IGNORE_INDEX
            total = binary_cross_entropy_with_logits(
                rows["finding_logits"], rows["findings"].clamp(min=0).float(), known.float(), reduction="sum"
            )
            terms["findings"] = config.findings_weight * total / known.sum().clamp(min=1)
        return terms

    @staticmethod
    def contrast(rows: dict[str, Tensor]) -> Tensor:
        """The contrastive term alone, unweighted, of the rows of a batch with their `pair_ids`."""
        pair = rows["image_embeds"], rows["text_embeds"], rows["logit_scale"]
        return info_nce(*pair, targets=duplicate_targets(rows["pair_ids"]))

    def get_image_features(
        self, pixel_values: Tensor, previous_pixel_values: Tensor | None = None, has_previous: Tensor | None = None
    ) -> BioViLTImageFeatures:
        """The four outputs of the published image model, for studies with and without a previous image.

        Args:
            pixel_values, previous_pixel_values: (B, 3, H, W), in [0, 1].
            has_previous: (B,), bool; which rows of `previous_pixel_values` count, all by default.

        Raises:
            ValueError: a previous image for a BioViL, or images or a mask of different sizes.
        """
        rows = self._rows_with_previous(pixel_values, previous_pixel_values, has_previous)
        if rows is None or len(rows) == 0 or previous_pixel_values is None:
            patches, previous = self._backbone(pixel_values), None
        else:
            patches, previous = self._backbone(torch.cat((pixel_values, previous_pixel_values[rows]))).split(
                [len(pixel_values), len(rows)]
            )
        if self.config.temporal:
            patches = torch.cat((patches, self._difference(patches, previous, rows)), dim=1)
        projected = self.projector(patches)
        return BioViLTImageFeatures(
            img_embedding=patches.mean((2, 3)),
            patch_embeddings=patches,
            projected_patch_embeddings=projected,
            projected_global_embedding=projected.mean((2, 3)),
        )

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Projected [CLS] states, (B, T) -> (B, D), not normalised."""
        return self.get_projected_text_embeddings(input_ids, attention_mask, normalize_embeddings=False)

    def get_projected_text_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, normalize_embeddings: bool = True
    ) -> Tensor:
        """Projected [CLS] states, (B, T) -> (B, D), L2-normalised unless told otherwise."""
        return self._text_model().get_projected_text_embeddings(input_ids, attention_mask, normalize_embeddings)

    def _text_model(self) -> CXRBertModel:
        if self.config.text_config is None:
            raise ValueError(
                "this BioViL-T has no text side; load the folder that holds the image model and the CXR-BERT, "
                "or give the configuration a text_config"
            )
        return self.text_model

    def _rows_with_previous(
        self, current: Tensor, previous: Tensor | None, has_previous: Tensor | None
    ) -> Tensor | None:
        """Indices of the rows that have a previous image, or None where the batch brings no previous images."""
        if previous is None:
            return None
        if not self.config.temporal:
            raise ValueError("a BioViL takes no previous image; load a BioViL-T or leave previous_pixel_values out")
        if previous.shape != current.shape:
            raise ValueError(
                f"current and previous images differ in size: {tuple(current.shape)}, {tuple(previous.shape)}"
            )
        if has_previous is None:
            return torch.arange(len(current), device=current.device)
        if has_previous.shape != current.shape[:1]:
            raise ValueError(f"has_previous must be ({len(current)},), one a study, got {tuple(has_previous.shape)}")
        return has_previous.bool().nonzero().flatten()

    def _backbone(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, h, w): the last ResNet stage, in BioViL-T narrowed to the pooler's width."""
        if self.config.norm == "group":  # group norm cannot remove a constant offset per channel, so standardise first
            spread, mean = torch.std_mean(pixel_values, dim=(1, 2, 3), keepdim=True)
            pixel_values = (pixel_values - mean) / (spread + 1e-6)
        hidden = self.backbone.embedder(pixel_values)
        for stage in self.backbone.encoder.stages:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(stage.__call__, hidden)
            else:
                hidden = stage(hidden)
        hidden = self.backbone_to_vit(hidden) if self.config.temporal else hidden
        if self.config.patch_positions:
            height, width = hidden.shape[2:]
            positions = detr_positions(height, width, hidden.shape[1], hidden.device).to(hidden.dtype)
            hidden = hidden + positions.mT.unflatten(1, (height, width))
        return hidden

    def _difference(self, patches: Tensor, previous: Tensor | None, rows: Tensor | None) -> Tensor:
        """What changed, (B, dim, h, w): the pooler's word where there is a previous image, else one learned vector."""
        missing = self.missing_previous_emb.to(patches.dtype).expand_as(patches)
        if rows is None:
            return missing
        if previous is not None:
            return missing.index_copy(0, rows, self.vit_pooler(patches[rows], previous).to(patches.dtype))
        if self.training:  # all parameters take part in every step, or DDP and ZeRO wait for ever on those that do not
            return missing + 0 * self.vit_pooler(patches[:1], patches[:1]).to(patches.dtype)
        return missing

    @classmethod
    def tiny(cls, tokenizer: PreTrainedTokenizerBase, **options: Any) -> BioViLTModel:
        """A model of half a million random weights for the given tokenizer; no dropout, group norms, stride 8."""
        text = CXRBertConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            projection_size=64,
            initializer_range=0.08,
        )
        backbone = ResNetConfig(embedding_size=16, hidden_sizes=[32, 96], depths=[1, 1], layer_type="basic")
        sizes = {"pooler_dim": 64, "pooler_layers": 1, "pooler_heads": 4, "projection_size": 64, "norm": "group"}
        quiet = {"pooler_dropout": 0.0, "pooler_drop_path": 0.0, "patch_positions": True}
        config: dict[str, Any] = {"backbone_config": backbone, "text_config": text} | sizes | quiet | options
        return cls(BioViLTConfig(**config))

    @classmethod
    def from_published(cls, path: str | Path, config: BioViLTConfig | None = None, **changes: Any) -> BioViLTModel:
        """Load the original project's files strictly, in evaluation mode.

        Args:
            path: `biovil_t_image_model_proj_size_128.pt` or BioViL's file, or a folder with one of them, beside which a
                CXR-BERT (`config.json` and weights) is loaded too.
            config: instead of the one that names and shapes of the weights tell: BioViL-T or BioViL, depth and widths.
            changes: of that configuration, `findings=[...]` for example; new heads begin at random.

        Raises:
            ValueError: no such file, or a checkpoint of another kind (the message says which it is).
        """
        state_dict = read_published(path)
        config = copy.deepcopy(config) or BioViLTConfig(**published_sizes(state_dict) | changes)
        state_dict = from_published(state_dict, config.backbone_config)
        if not config.fc_classes:
            state_dict = {key: value for key, value in state_dict.items() if key not in FC}
        folder = Path(path)
        if (folder / "config.json").is_file():
            text_model = CXRBertModel.from_published(folder)
            config.text_config = text_model.config
            state_dict |= {f"text_model.{key}": value for key, value in text_model.state_dict().items()}
        model = cls(config)
        load_weights(model, state_dict, ignorable=OURS_ALONE, what=f"the image model in {path}")
        return model.eval()


AutoConfig.register(BioViLTConfig.model_type, BioViLTConfig)
AutoModel.register(BioViLTConfig, BioViLTModel)
