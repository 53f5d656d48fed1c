"""`DualEncoderModel`: one tower for radiographs, one for reports, one joint space.

Knows neither pixels on disk nor tokenizers. The loss of a global batch needs all its embeddings at once, so `forward`
returns what the loss is a function of (`representations`), and `loss_terms_of` is that function: of the rows of one
batch, of the rows of all processes, or of rows cached over many micro-batches (`training/contrastive.py`).

ConVIRT (Zhang et al. 2020, arXiv 2010.00747), CLIP (Radford et al. 2021, arXiv 2103.00020); BiomedCLIP (Zhang et al.
2023, arXiv 2303.00915) loads with `from_published`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2TextConfig,
    SiglipTextConfig,
    ViTConfig,
)
from transformers import initialization as init

from hf_medvlm import losses
from hf_medvlm.families.dual_encoder.published import IGNORABLE, read_published
from hf_medvlm.models.contrast import add_loss
from hf_medvlm.models.convert.checkpoint import load_weights
from hf_medvlm.models.declared import check_declared
from hf_medvlm.models.encoding import encode_image, encode_text
from hf_medvlm.models.heads import projection
from hf_medvlm.models.loading import find_folder
from hf_medvlm.models.outputs import DualEncoderOutput
from hf_medvlm.models.positions import mae_positions
from hf_medvlm.models.tiny import TINY_INIT, TINY_PATCH
from hf_medvlm.models.towers import (
    OWN_POOLING,
    POOLINGS,
    KeepsFrozen,
    build_tower,
    default_pooling,
    freeze,
    hidden_size,
    load_tower,
)

LOSSES = ("info_nce", "sigmoid")
LOCAL_LOSSES = ("gloria", "mgca", "filip")


class DualEncoderConfig(PreTrainedConfig):
    """Towers, projections and loss of a `DualEncoderModel`; the default is ViT-B/16 with BERT-base.

    Args:
        vision_config, text_config: of any vision tower (ViT, ResNet, CLIP, DINOv2, Swin, ...) and text tower of
            transformers.
        projection_size: D, the width of the joint space.
        vision_projection, text_projection: "linear" or "mlp", without biases, or "none".
        text_pooling: "cls" (the first token), "mean", "last" (the last valid token, for decoders) or "pooler" (the
            tower's own: CLIP's end token, SigLIP's head).
        loss: "info_nce" or "sigmoid" (SigLIP's). image_weight, text_weight: of InfoNCE's directions.
        match_duplicates: rows with the same `pair_ids` (the same report or study) match each other.
        temperature: at the start, learnable; `max_logit_scale` bounds its inverse. logit_bias: at the start, of
            "sigmoid".
        local_loss: None, "gloria", "mgca" or "filip", between projected patches and tokens, times `local_weight`.

    Raises:
        ValueError: a temperature that is not a positive number, or an unknown name.
    """

    model_type = "dual_encoder"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    keys_to_ignore_at_inference = ["representations", "loss_terms"]

    vision_config: Any = None  # a config or its dictionary; a config once built
    text_config: Any = None  # a config or its dictionary; a config once built
    projection_size: int = 512
    vision_projection: str = "linear"
    text_projection: str = "linear"
    text_pooling: str = "cls"
    loss: str = "info_nce"
    image_weight: float = 0.5
    text_weight: float = 0.5
    match_duplicates: bool = True
    temperature: float = 0.07
    max_logit_scale: float = 100.0
    logit_bias: float = -10.0
    local_loss: str | None = None
    local_weight: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        check_declared(self)
        self.vision_config = _tower_config(self.vision_config, ViTConfig)
        self.text_config = _tower_config(self.text_config, BertConfig)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"the temperature must be a positive number, got {self.temperature}; 0.07 is the usual one"
            )
        for name, value, known in (
            ("loss", self.loss, LOSSES),
            ("local_loss", self.local_loss, (None, *LOCAL_LOSSES)),
            ("text_pooling", self.text_pooling, POOLINGS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r:.100}")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the vision tower; DeepSpeed sizes its buckets by it."""
        return hidden_size(self.vision_config)


def _tower_config(config: dict | PreTrainedConfig | None, default: type[PreTrainedConfig]) -> PreTrainedConfig:
    if isinstance(config, dict):
        return config_class_of(config.get("model_type", default.model_type))(**config)
    return config or default()


def config_class_of(model_type: str) -> type[PreTrainedConfig]:
    """The config class of a tower; transformers' mapping leaves out the text halves of SigLIP and SigLIP 2."""
    halves = {"siglip_text_model": SiglipTextConfig, "siglip2_text_model": Siglip2TextConfig}
    return halves.get(model_type) or CONFIG_MAPPING[model_type]


class DualEncoderModel(KeepsFrozen, PreTrainedModel):
    """Radiographs and reports in one space, trained by contrast."""

    config_class = DualEncoderConfig
    config: DualEncoderConfig
    base_model_prefix = "dual_encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    part_modules = {"vision": ("vision_tower",), "language": ("text_tower",)}

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config)
        self.text_tower = build_tower(config.text_config)
        self.vision_projection = projection(
            config.vision_projection, hidden_size(config.vision_config), config.projection_size
        )
        self.text_projection = projection(
            config.text_projection, hidden_size(config.text_config), config.projection_size
        )
        # (1,) and not (): DeepSpeed cannot broadcast a parameter without dimensions
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / config.temperature)))
        if config.loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.full((1,), config.logit_bias))
        self.post_init()
        self.apply_freezing()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, math.log(1 / self.config.temperature))
            if self.config.loss == "sigmoid":
                init.constant_(self.logit_bias, self.config.logit_bias)

    def apply_freezing(self) -> None:
        for tower in (self.vision_tower, self.text_tower):
            freeze(tower, frozen=False)  # but for what no loss reaches

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', but under the names the model has in memory.

        By default transformers 5 writes a ViT under its names of version 4. `from_pretrained` renames them again, but
        the Trainer does not when it resumes or goes back to the best checkpoint: the tower would be left untouched.
        """
        super().save_pretrained(*args, **({"save_original_format": False} | kwargs))

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str, **options: Any) -> DualEncoderModel:
        """Two pretrained towers, each a Hub id or a folder, under new projections.

        Args:
            options: of `config_class`; texts are pooled as the text tower's were in its training, by default.

        Example: `from_vision_text_pretrained("google/vit-base-patch16-224-in21k", "emilyalsentzer/Bio_ClinicalBERT")`.
        """
        towers = load_tower(vision, "vision"), load_tower(text, "text")
        pooling = default_pooling(towers[1].config, find_folder(text, weights=False))
        configs: dict[str, Any] = {"vision_config": towers[0].config, "text_config": towers[1].config}
        model = cls(cls.config_class(**configs, **({"text_pooling": pooling} | options)))
        # put in after building: what is loaded before `post_init` would be drawn anew
        model.vision_tower, model.text_tower = towers
        model.apply_freezing()
        return model

    @classmethod
    def from_published(
        cls, path: str | Path, config: DualEncoderConfig | None = None, **options: Any
    ) -> DualEncoderModel:
        """A published model with both towers, from its folder: its projections, temperature and bias go on.

        Args:
            path: a folder of transformers' CLIP, SigLIP or SigLIP 2; of open_clip (`open_clip_config.json` and
                weights: BiomedCLIP, SigLIP, CLIP with a ViT, with or without a BERT); or OpenAI's CLIP as a state dict.
            config: instead of the one made from the folder; its sizes must fit.
            options: of `config_class`, over those of the folder.

        Raises:
            ValueError: no such files, another family's weights, or keys that are missing, unexpected or mis-shaped
                (listed).
        """
        published, state_dict = read_published(path)
        model = cls(config or cls.config_class(**(published | options)))
        if "logit_bias" in state_dict and model.config.loss != "sigmoid":
            del state_dict["logit_bias"]
        load_weights(model, state_dict, ignorable=(*IGNORABLE, *cls.ours_alone), what=str(path))
        if "temperature" in options:
            model.logit_scale.data.fill_(math.log(1 / options["temperature"]))
        return model

    ours_alone: tuple[str, ...] = ("logit_bias",)  # not every published file has these

    @classmethod
    def tiny(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96, patch_size: int = TINY_PATCH, **options: Any
    ) -> DualEncoderModel:
        """A model of about a million random weights for the given tokenizer."""
        sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
        sizes["initializer_range"] = TINY_INIT
        vision = ViTConfig(
            **sizes, num_hidden_layers=4, image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6
        )
        text = BertConfig(
            **sizes,
            num_hidden_layers=1,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        # without pretraining, a class token of text and a sharp temperature do not start to learn
        defaults: dict[str, Any] = {"projection_size": 64, "text_pooling": "mean", "temperature": 0.2}
        model = cls(cls.config_class(vision_config=vision, text_config=text, **(defaults | options)))
        embeddings: Any = model.vision_tower.embeddings
        positions = embeddings.position_embeddings[0, 1:]
        positions.data.copy_(mae_positions(image_size // patch_size, positions.shape[-1]))
        return model

    # -- features ------------------------------------------------------------------------------------------------------

    def get_image_features(self, pixel_values: Tensor, **patches_of: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, D), projected, not normalised; `patches_of` as `encode_image`'s."""
        return self.vision_projection(encode_image(self.vision_tower, pixel_values, **patches_of).pooled)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, D), projected, not normalised. Without a mask the padding tokens are hidden, as in
        open_clip.
        """
        mask = self.text_mask(input_ids, attention_mask)
        return self.text_projection(encode_text(self.text_tower, input_ids, mask, self.config.text_pooling).pooled)

    def text_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask given, or that of all tokens but padding; CLIP and SigLIP find the end of a text themselves."""
        if attention_mask is not None:
            return attention_mask
        if self.config.text_config.model_type in OWN_POOLING:
            return torch.ones_like(input_ids)
        return (input_ids != (self.config.text_config.pad_token_id or 0)).long()

    @property
    def scale(self) -> Tensor:
        """(), the inverse temperature, bounded. Under ZeRO-3 it can be read only inside `forward`."""
        return self.logit_scale.clamp(max=math.log(self.config.max_logit_scale)).exp().reshape(())

    def represent(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **patches_of: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All that the loss is a function of, one row a study, and scalars; and further outputs by name.

        The embeddings are float32 whatever the model computes in: their dot products decide ranks.
        """
        image = encode_image(self.vision_tower, pixel_values, **patches_of)
        text = encode_text(self.text_tower, input_ids, attention_mask, self.config.text_pooling)
        rows = {
            "image_embeds": F.normalize(self.vision_projection(image.pooled).float(), dim=-1),
            "text_embeds": F.normalize(self.text_projection(text.pooled).float(), dim=-1),
        }
        if self.config.local_loss:
            rows["patch_embeds"] = self.vision_projection(image.patches).float()  # (B, P, D)
            rows["token_embeds"] = self.text_projection(text.tokens).float()  # (B, T, D)
            rows["token_mask"] = attention_mask
        return rows | self.scalars(), {}

    def scalars(self) -> dict[str, Tensor]:
        """The learnt numbers of the loss, () each."""
        bias = {"logit_bias": self.logit_bias.float().reshape(())} if self.config.loss == "sigmoid" else {}
        return {"logit_scale": self.scale.float()} | bias

    # -- the loss ------------------------------------------------------------------------------------------------------

    def loss_terms_of(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms that sum to the loss, by name. Reads the config alone, so that it runs on gathered or
        cached rows.

        Args:
            rows: `representations` of the whole global batch, with `pair_ids` (B,) where duplicates are known.

        Raises:
            ValueError: the temperature has become NaN.
        """
        if not torch.isfinite(rows["logit_scale"]):
            raise ValueError(
                f"the temperature is no number any more (its inverse is {rows['logit_scale'].item()}): training has "
                "diverged. Lower --learning_rate, raise --warmup_steps, or train in bf16 instead of fp16, and start "
                "again from the last good checkpoint"
            )
        # without autocast: half precision would shuffle the ranks of a large batch
        with torch.autocast(rows["image_embeds"].device.type, enabled=False):
            return self._terms(rows)

    def _terms(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = {"contrastive": self.contrast(rows)}
        if self.config.local_loss:
            terms["local"] = self.config.local_weight * self._local_loss(rows, self.targets_of(rows))
        return terms

    def contrast(self, rows: dict[str, Tensor], images: str = "image_embeds") -> Tensor:
        """The contrast of the rows called `images` with the texts: the config's loss, unweighted."""
        pair, targets = (rows[images], rows["text_embeds"], rows["logit_scale"]), self.targets_of(rows)
        if self.config.loss == "sigmoid":
            return losses.sigmoid_pairs(*pair, rows["logit_bias"], targets=targets)
        image_weight, text_weight = self.config.image_weight, self.config.text_weight
        return losses.info_nce(*pair, image_weight=image_weight, text_weight=text_weight, targets=targets)

    def targets_of(self, rows: dict[str, Tensor]) -> Tensor | None:
        """(B, B) bool, which images and texts match; None where each matches its own alone."""
        matched = self.config.match_duplicates and "pair_ids" in rows
        return losses.duplicate_targets(rows["pair_ids"]) if matched else None

    def _local_loss(self, rows: dict[str, Tensor], targets: Tensor | None) -> Tensor:
        patches, tokens, mask = rows["patch_embeds"], rows["token_embeds"], rows["token_mask"]
        if self.config.local_loss == "gloria":
            return torch.add(*losses.gloria_local(patches, tokens, mask.sum(1)))
        if self.config.local_loss == "mgca":
            return torch.add(*losses.mgca_local(F.normalize(patches, dim=-1), F.normalize(tokens, dim=-1), mask))
        return losses.filip(patches, tokens, mask, rows["logit_scale"], targets=targets)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pair_ids: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> DualEncoderOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; of SigLIP 2 its patches (B, P, 3 * side * side), with
                `pixel_attention_mask` and `spatial_shapes`.
            input_ids, attention_mask: (B, T), padded on the right.
            pair_ids: (B,), equal for rows whose reports (or studies) are the same. They are this family's labels:
                with them there is a loss, in training over the rows of all processes.
            labels: (B,), each study's place in its split. Not read: a stock trainer evaluates only batches that have
                labels, and hands them to `compute_metrics`.

        Raises:
            ValueError: a loss is asked of a single pair, or of pairs with one and the same text; the temperature is
                NaN.
        """
        patches_of = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        rows, maps = self.represent(pixel_values, input_ids, self.text_mask(input_ids, attention_mask), **patches_of)
        with torch.autocast(pixel_values.device.type, enabled=False):
            logits = rows["logit_scale"] * rows["image_embeds"] @ rows["text_embeds"].mT
        output = DualEncoderOutput(
            logits_per_image=logits,
            image_embeds=rows["image_embeds"],
            text_embeds=rows["text_embeds"],
            representations=rows,
            salience=maps.get("salience"),
            kept=maps.get("kept"),
        )
        if pair_ids is not None:
            add_loss(output, rows | {"pair_ids": pair_ids}, self.loss_terms_of, self.training)
        return output


AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoderModel)
