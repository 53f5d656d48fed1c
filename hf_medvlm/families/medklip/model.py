"""MedKLIP: descriptions of findings query the patches of a radiograph; each is judged present or absent, and located.

Knows no tokenizer, no report and no file of pixels. Descriptions come in as embeddings, by an explicit call, and stay
in persistent buffers: an entity that was not trained is queried by its description alone.

Wu et al. 2023, "MedKLIP" (arXiv 2301.02228); reference: MediaBrain-SJTU/MedKLIP @ 8e60b035.

Normalisation. `norm="batch"` (the published network) uses its running statistics in training too, `norm="group"` (for
networks trained from nothing) has none: with batch statistics one batch and its micro-batches would give two losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, normalize, one_hot
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig, ResNetModel
from transformers import initialization as init

from hf_medvlm.families.medklip.decoder import EntityDecoder
from hf_medvlm.families.medklip.published import from_published, published_sizes, read_published
from hf_medvlm.models.convert.checkpoint import load_weights
from hf_medvlm.models.declared import check_declared
from hf_medvlm.models.norms import replace_batch_norms
from hf_medvlm.models.outputs import MedKlipOutput
from hf_medvlm.models.positions import detr_positions
from hf_medvlm.models.towers import KeepsFrozen

ABSENT, PRESENT = 0, 1
"""Labels, and the two columns of the logits; any label below 0 is not known and not learnt from."""

EXISTENCE_LOSSES = ("cross_entropy", "bce")
ALIGNMENT = 64  # bytes, of the memory that torch allocates
BUFFERS = ("entity_embeddings", "position_embeddings")  # no published file has these


class MedKlipConfig(PreTrainedConfig):
    """Sizes and losses of a `MedKlipModel`; the defaults are the published ones.

    Args:
        backbone_config: the ResNet whose last stage gives the patches; the first three stages of ResNet-50 by default.
        norm: "batch" or "group", see the module.
        text_size: width of the descriptions' embeddings.
        d_model: width of the decoder (256 in MedKLIP; 768 works as well).
        decoder_layers, decoder_heads, ffn_dim, dropout: of the decoder.
        patch_positions: add sine positions to the patches (MedKLIP does not). Where a patch sees little of the image
            around it, the position loss then teaches the decoder to look where the report says that a finding is.
        entities, positions: names, in the order of the embeddings; empty where only their number is known.
        num_entities, num_positions: rows of the two buffers; kept by `set_entity_embeddings` and its like.
        existence_loss: "cross_entropy" over absent and present, or "bce", each of the two logits on its own.
        position_weight: a1, of the position loss; 0 leaves it out.
        position_temperature: None for MedKLIP's raw dot products, else cosines divided by it.
        semantic_weight: a2, of the semantic loss; 0 (MedKLIP) leaves it out.
        initializer_range: standard deviation of new weights.
    """

    model_type = "medklip"
    keys_to_ignore_at_inference = ["loss_terms", "loss_sums"]
    sub_configs = {"backbone_config": ResNetConfig}
    attribute_map = {"hidden_size": "d_model"}

    backbone_config: Any = None  # a config or its dictionary; a config once built
    norm: str = "batch"
    text_size: int = 768
    d_model: int = 256
    decoder_layers: int = 4
    decoder_heads: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    patch_positions: bool = False
    entities: list[str] | tuple[str, ...] = ()
    positions: list[str] | tuple[str, ...] = ()
    num_entities: int = 0
    num_positions: int = 0
    existence_loss: str = "cross_entropy"
    position_weight: float = 1.0
    position_temperature: float | None = None
    semantic_weight: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        check_declared(self)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = ResNetConfig(**self.backbone_config)
        self.backbone_config = self.backbone_config or ResNetConfig(hidden_sizes=[256, 512, 1024], depths=[3, 4, 6])
        if self.norm not in ("batch", "group"):
            raise ValueError(f'norm must be "batch" or "group", got {self.norm!r:.100}')
        if self.existence_loss not in EXISTENCE_LOSSES:
            raise ValueError(f"existence_loss must be one of {EXISTENCE_LOSSES}, got {self.existence_loss!r:.100}")
        if self.d_model % self.decoder_heads:
            raise ValueError(f"d_model={self.d_model} cannot be split among {self.decoder_heads} heads")
        # which of the two logits of an entity means what
        kwargs.setdefault("id2label", {ABSENT: "absent", PRESENT: "present"})
        super().__post_init__(**kwargs)


class MedKlipModel(KeepsFrozen, PreTrainedModel):
    """Patches of a ResNet, a decoder in which entities attend to them, a classifier, and position and meaning heads."""

    config_class = MedKlipConfig
    config: MedKlipConfig
    base_model_prefix = "medklip"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    part_modules = {"vision": ("backbone",), "language": ()}

    entity_embeddings: Tensor
    position_embeddings: Tensor

    def __init__(self, config: MedKlipConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        channels, width, text = config.backbone_config.hidden_sizes[-1], config.d_model, config.text_size
        self.backbone = ResNetModel(config.backbone_config)
        if config.norm == "group":
            replace_batch_norms(self.backbone)
        self.patch_projection = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width))
        self.entity_projection = nn.Linear(text, width)
        self.decoder = EntityDecoder(width, config.decoder_layers, config.decoder_heads, config.ffn_dim, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, 2)
        self.position_projection = nn.Linear(width, text)
        if config.semantic_weight:
            self.semantic_projection = nn.Linear(width, text)
        self.register_buffer("entity_embeddings", torch.zeros(config.num_entities, text))
        self.register_buffer("position_embeddings", torch.zeros(config.num_positions, text))
        self.post_init()
        self.apply_freezing()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.entity_embeddings)
            init.zeros_(self.position_embeddings)

    def apply_freezing(self) -> None:
        self.position_projection.requires_grad_(bool(self.config.position_weight))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Tensors mapped from a file lie at odd addresses, where matrix products round otherwise: not equal to the bit.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return loaded

    # ------------------------------------------------------------------------------------------- what is asked for

    def set_entity_embeddings(self, embeddings: Tensor, names: Sequence[str] = ()) -> None:
        """What the model looks for from now on: one description's embedding a row, kept when the model is saved.

        Args:
            embeddings: (E, text_size). names: of the E entities.

        Raises:
            ValueError: an empty list, another width, or names that are not one for each row.
        """
        self._set("entity", embeddings, names)

    def set_position_embeddings(self, embeddings: Tensor, names: Sequence[str] = ()) -> None:
        """The places that the position loss tells apart, (positions, text_size): as `set_entity_embeddings`."""
        self._set("position", embeddings, names)

    def _set(self, kind: str, embeddings: Tensor, names: Sequence[str]) -> None:
        plural = {"entity": "entities", "position": "positions"}[kind]
        self._check_embeddings(embeddings, plural)
        if names and len(names) != len(embeddings):
            raise ValueError(f"{len(names)} names for {len(embeddings)} {plural}; give one for each, or none")
        before = getattr(self, f"{kind}_embeddings")
        setattr(self, f"{kind}_embeddings", embeddings.detach().to(before.device, before.dtype).clone())
        setattr(self.config, f"num_{plural}", len(embeddings))
        setattr(self.config, plural, list(names))

    def _check_embeddings(self, embeddings: Tensor, plural: str) -> None:
        if embeddings.dim() != 2 or embeddings.shape[1] != self.config.text_size:
            raise ValueError(
                f"embeddings of {plural} must be (number, {self.config.text_size}), got {tuple(embeddings.shape)}; "
                "text_size of the configuration is the width of the text encoder"
            )
        if not len(embeddings):
            raise ValueError(f"the list of {plural} is empty; give at least one")

    # ------------------------------------------------------------------------------------------- what is seen

    def get_image_features(self, pixel_values: Tensor, return_grid: bool = False) -> Any:
        """Patches, (B, 3, H, W) normalised -> (B, P, d_model), row by row; their (rows, columns) too if asked for."""
        hidden = self._backbone(pixel_values)
        patches = self._patches(hidden)
        return (patches, tuple(hidden.shape[2:])) if return_grid else patches

    def _patches(self, hidden: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, P, d_model)."""
        patches = self.patch_projection(hidden.flatten(2).mT)
        if not self.config.patch_positions:
            return patches
        height, width = hidden.shape[2:]
        return patches + detr_positions(height, width, patches.shape[-1], patches.device).to(patches.dtype)

    def _backbone(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), the ResNet's last stage."""
        hidden = self.backbone.embedder(pixel_values)
        for stage in self.backbone.encoder.stages:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(stage.__call__, hidden)
            else:
                hidden = stage(hidden)
        return hidden

    def query(self, patches: Tensor, entity_embeddings: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look for each entity among the patches.

        Args:
            patches: (B, P, d_model), of `get_image_features`.
            entity_embeddings: (E, text_size), descriptions to look for instead of the model's own; none of them need
                have been trained.

        Returns:
            Features (B, E, d_model) and location maps (B, E, P).

        Raises:
            ValueError: there are no entities.
        """
        if entity_embeddings is None:
            if not len(self.entity_embeddings):
                raise ValueError(
                    "this MedKLIP has no entities yet (a published checkpoint brings none); "
                    "call set_entity_embeddings with one embedding a description first"
                )
            entity_embeddings = self.entity_embeddings
        else:
            self._check_embeddings(entity_embeddings, "entities")
        queries = self.entity_projection(entity_embeddings.to(self.entity_embeddings.dtype))
        run = self._gradient_checkpointing_func if self.gradient_checkpointing and self.training else None
        features, maps = self.decoder(queries.expand(patches.shape[0], -1, -1), patches, run)
        return self.dropout(features), maps

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        position_index: Tensor | None = None,
        entity_embeddings: Tensor | None = None,
    ) -> MedKlipOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, E), 1 present, 0 absent, below 0 not known.
            position_index: (B, E, K), positions to choose from; the first is where the entity is. Read where it is
                present only.
            entity_embeddings: see `query`.

        Raises:
            ValueError: no entities, labels or positions of the wrong size.
        """
        features, maps = self.query(self.get_image_features(pixel_values), entity_embeddings)
        logits = self.classifier(features)
        if labels is None:
            return MedKlipOutput(logits=logits, location_maps=maps)
        self._check_labels(logits, labels, position_index)
        counts = {"labelled": (labels >= 0).sum(), "present": (labels == PRESENT).sum()}
        sums = self._loss_sums(features, logits, labels, position_index, entity_embeddings)
        terms = {name: total / counts[unit].clamp(min=1) for name, (unit, total) in sums.items()}
        return MedKlipOutput(
            loss=reduce(torch.add, terms.values()),
            loss_terms={name: term.detach() for name, term in terms.items()},
            loss_sums=sums,
            logits=logits,
            location_maps=maps,
        )

    def saliency(self, pixel_values: Tensor, entities: Sequence[int]) -> Tensor:
        """Grad-CAM: where the ResNet's features speak for each entity, beside where the decoder attends.

        Args:
            pixel_values: (B, 3, H, W), normalised. entities: n numbers of entities.

        Returns:
            (B, n, h, w), 0 where nothing speaks for it. Parameters get no gradient.

        Reference: Selvaraju et al. 2017 (arXiv 1610.02391), on the existence logit less the absence logit.
        """
        maps = []
        with torch.enable_grad():
            hidden = self._backbone(pixel_values).detach().requires_grad_()
            logits = self.classifier(self.query(self._patches(hidden))[0])
            for margin in (logits[..., PRESENT] - logits[..., ABSENT])[:, list(entities)].sum(0):
                (gradient,) = torch.autograd.grad(margin, hidden, retain_graph=True)
                maps.append((gradient.mean((2, 3), keepdim=True) * hidden).sum(1).relu().detach())
        return torch.stack(maps, dim=1)

    # ------------------------------------------------------------------------------------------- what is learnt

    def _loss_sums(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        position_index: Tensor | None,
        entity_embeddings: Tensor | None,
    ) -> dict[str, tuple[str, Tensor]]:
        """name -> (the entries it is a sum over, "labelled" or "present"; the weighted sum)."""
        config = self.config
        known, present = labels >= 0, labels == PRESENT
        states = labels[known].long()
        if config.existence_loss == "bce":
            targets = one_hot(states, 2).to(logits.dtype)
            existence = binary_cross_entropy_with_logits(logits[known], targets, reduction="sum") / 2
        else:
            existence = cross_entropy(logits[known], states, reduction="sum")
        sums = {"existence": ("labelled", existence)}
        if config.position_weight and position_index is not None:
            position = self._position_sum(features[present], position_index[present])
            sums["position"] = ("present", config.position_weight * position)
        if config.semantic_weight:
            meanings = self.entity_embeddings if entity_embeddings is None else entity_embeddings
            texts = meanings.expand(len(labels), -1, -1)[present]
            away = 1 - cosine_similarity(self.semantic_projection(features[present]), texts, dim=-1)
            sums["semantic"] = ("present", config.semantic_weight * away.sum())
        return sums

    def _position_sum(self, features: Tensor, candidates: Tensor) -> Tensor:
        """Summed cross-entropy of finding the first of the candidate positions, (N, d_model), (N, K)."""
        predicted, positions = self.position_projection(features), self.position_embeddings.to(features.dtype)
        scale = self.config.position_temperature
        if scale is not None:
            predicted, positions = normalize(predicted, dim=-1) / scale, normalize(positions, dim=-1)
        logits = (predicted @ positions.mT).gather(1, candidates)  # (N, K)
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return cross_entropy(logits, first, reduction="sum")

    def _check_labels(self, logits: Tensor, labels: Tensor, position_index: Tensor | None) -> None:
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels must be {tuple(logits.shape[:2])}, one for each entity, got {tuple(labels.shape)}"
            )
        if position_index is None or not self.config.position_weight:
            return
        if position_index.shape[:2] != labels.shape or position_index.dim() != 3:
            raise ValueError(f"position_index must be {(*labels.shape, 'K')}, got {tuple(position_index.shape)}")
        if not len(self.position_embeddings):
            raise ValueError("the position loss needs set_position_embeddings, or position_weight 0")

    # ------------------------------------------------------------------------------------------- making one

    @classmethod
    def tiny(cls, **options: Any) -> MedKlipModel:
        """A small model of random weights, without entities or positions as yet.

        Its patches are 8 pixels wide and see 50 of them, so that the decoder has to look where a finding is.
        """
        sizes: dict[str, Any] = {
            "backbone_config": ResNetConfig(
                embedding_size=32, hidden_sizes=[64, 128], depths=[1, 2], layer_type="bottleneck"
            ),
            "norm": "group",
            "patch_positions": True,
            "d_model": 128,
            "decoder_layers": 2,
            "ffn_dim": 256,
            "initializer_range": 0.08,  # 1 / sqrt(d_model): at 0.02 all entities look alike for hundreds of steps
        }
        return cls(MedKlipConfig(**(sizes | options)))

    @classmethod
    def from_published(cls, path: str | Path, config: MedKlipConfig | None = None, **changes: Any) -> MedKlipModel:
        """Load the original project's `.pth` strictly, in evaluation mode; then call `set_entity_embeddings`.

        The file holds neither descriptions nor text encoder: embed the descriptions with Bio_ClinicalBERT
        (`descriptions.bert_embeddings`) and hand them over, and the positions for training.

        Args:
            path: the file, or a folder with one.
            config: instead of the one that names and shapes tell (the number of heads, 4, and the dropout they do not).
            changes: of that configuration.

        Raises:
            ValueError: no such file, or a checkpoint of another kind (the message says which it is).
        """
        state_dict = read_published(path)
        config = config or MedKlipConfig(**published_sizes(state_dict) | changes)
        model = cls(config)
        ignorable = (*BUFFERS, "semantic_projection.*")
        load_weights(model, from_published(state_dict, config), ignorable=ignorable, what=f"the MedKLIP in {path}")
        return model.eval()


AutoConfig.register(MedKlipConfig.model_type, MedKlipConfig)
AutoModel.register(MedKlipConfig, MedKlipModel)
