"""`LlavaReporter`: transformers' LLaVA-1.5 that reads radiographs and answers in conversations.

What it adds to `LlavaForConditionalGeneration`: a loss that is a token mean over the *global* batch, per-row losses for
evaluation, one option for what trains, images in any number a row and none in some batches (ZeRO-3 stays in step), and
an image token that needs no row in the vocabulary, so that an original checkpoint keeps its 32000.

Knows no tokenizer and no conversation. Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning"
(arXiv 2310.03744).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_medvlm.labels import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from hf_medvlm.losses import token_losses
from hf_medvlm.models.outputs import LlavaReporterOutput

TRAINS = ("projector", "projector+lora", "projector+llm", "all")
"""Stage 1 of LLaVA; LoRA on the language model; LLaVA's stage 2; the vision tower too."""


class LlavaReporterConfig(LlavaConfig):
    """`LlavaConfig` with `trains`, one of `TRAINS`."""

    model_type = "medvlm_llava"
    trains: str = "all"


class LlavaReporter(LlavaForConditionalGeneration):
    """LLaVA for reports. Loads `llava-hf/*`, its own checkpoints and, by `from_published`, original ones."""

    config_class = LlavaReporterConfig
    published_types = ("llava",)
    # The weights of the loss come from the trainer, as `loss_denominators`; nothing else may be scaled.
    accepts_loss_kwargs = False

    def __init__(self, config: LlavaReporterConfig) -> None:
        super().__init__(config)
        # A projector that trains may be in float32 beside a tower in bfloat16.
        self.model.multi_modal_projector.register_forward_pre_hook(
            lambda projector, inputs: (inputs[0].to(projector.linear_1.weight.dtype),)
        )
        self.set_trainable(config.trains)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.set_trainable(model.config.trains)  # loading replaces the parameters, and with them what was frozen
        return loaded

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """Saves the weights under the names they have here: the Trainer finds no others when it resumes."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @classmethod
    def from_published(
        cls, folder: str | Path, config: LlavaReporterConfig | None = None, **options: Any
    ) -> LlavaReporter:
        """Load an original `liuhaotian/llava-v1.5-*` folder or a `llava-hf` one, strictly.

        Args:
            config: in place of the one that the folder's `config.json` describes.
            options: of `convert.llava.load_published`: `vision_tower`, `dtype`.

        Raises:
            ValueError: no LLaVA checkpoint, one with parts that are not supported, or keys that do not fit.
        """
        from hf_medvlm.families.chat.published import load_published

        return load_published(cls, Path(folder), config, **options)

    @property
    def image_tokens(self) -> int:
        """How many tokens an image takes among the text's."""
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + (self.config.vision_feature_select_strategy == "full")

    def set_trainable(self, trains: str) -> None:
        """Stop the gradient of all that `trains` leaves out, and of the vision layers behind the one that is read.

        `projector+lora` freezes all but the projector: the adapters come on top (`lora.add_lora`).

        Raises:
            ValueError: `trains` is none of `TRAINS`.
        """
        if trains not in TRAINS:
            raise ValueError(f"--trains {trains!r}: choose one of {', '.join(TRAINS)}")
        self.config.trains = trains
        self.requires_grad_(trains in ("all", "projector+llm"))
        self.model.vision_tower.requires_grad_(trains == "all")
        self.model.multi_modal_projector.requires_grad_(True)
        for unread in self._unread_vision_parts():
            unread.requires_grad_(False)

    def _unread_vision_parts(self) -> list[nn.Module]:
        tower, chosen = self.model.vision_tower, self.config.vision_feature_layer
        layers = tower.encoder.layers
        last = max(layer % (len(layers) + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
        return [*layers[last:], tower.post_layernorm]

    def train(self, mode: bool = True) -> LlavaReporter:
        super().train(mode)
        if self.config.trains != "all":
            self.model.vision_tower.eval()
        return self

    def count_loss_items(self, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        """How many tokens the loss of a batch is a mean of; the trainer sums this over the global batch."""
        return {"tokens": (labels[:, 1:] != IGNORE_INDEX).sum()}

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Token embeddings (B, T, D), image features in the places of the image tokens, in order.

        A batch without images still sends a black one through tower and projector, times zero, where other processes
        may wait for it (DDP, ZeRO-3). As in LLaVA, a row without image tokens may bring an image that is not used.

        Raises:
            ValueError: image tokens and image features differ in number.
        """
        is_image = (input_ids == self.config.image_token_id) | (input_ids == IMAGE_TOKEN_INDEX)  # (B, T)
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        without = pixel_values is None or len(pixel_values) == 0
        if without and not (self.training or is_deepspeed_zero3_enabled()):
            features = embeds.new_zeros(0, self.image_tokens, embeds.shape[-1])
        else:
            images = self._black_image(embeds) if without else pixel_values
            outputs = self.model.get_image_features(images.to(self._vision_dtype), return_dict=True)
            features = torch.stack(list(outputs.pooler_output)).to(embeds.dtype)  # (N, P, D)
        if without and len(features):
            embeds, features = embeds + 0.0 * features.sum(), features[:0]
        if features.shape[:2].numel() != is_image.sum() and len(features) == len(input_ids):
            features = features[is_image.any(1)]
        if features.shape[:2].numel() != is_image.sum():
            raise ValueError(
                f"{int(is_image.sum())} image tokens in the text, but {len(features)} image(s) of {self.image_tokens} "
                "tokens: an image was left out, or its tokens were cut"
            )
        return embeds.masked_scatter(is_image.unsqueeze(-1), features)

    @property
    def _vision_dtype(self) -> torch.dtype:
        return self.model.vision_tower.embeddings.patch_embedding.weight.dtype

    def _black_image(self, like: Tensor) -> Tensor:
        side = self.config.vision_config.image_size
        return like.new_zeros(1, 3, side, side)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        loss_denominators: dict[str, Tensor] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **generation: Any,
    ) -> LlavaReporterOutput:
        """
        Args:
            input_ids: (B, T), every image as `image_tokens` times `config.image_token_id`.
            pixel_values: (N, 3, H, W), normalised; the batch's N images in the order of their tokens, or None.
            attention_mask: (B, T). None with `position_ids` that begin again at 0: rows of several samples,
                each of which sees only itself.
            labels: (B, T), `IGNORE_INDEX` where nothing is supervised.
            loss_denominators: {"tokens": ()}, the supervised tokens of the global batch; this batch's own by default.
            generation: what `generate` hands to the language model.
        """
        if inputs_embeds is None:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.embed(input_ids, pixel_values)
        generation.pop("return_dict", None)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **({"use_cache": False} if labels is not None else {}),
            **generation,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        result = LlavaReporterOutput(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if labels is not None:
            nll, tokens = token_losses(logits, labels)
            count = tokens.sum() if loss_denominators is None else loss_denominators["tokens"]
            result.loss = nll.sum() / count.clamp(min=1)
            result.nll, result.tokens = nll.detach(), tokens
        return result


if get_checkpoint_conversion_mapping(LlavaReporterConfig.model_type) is None:  # once, where the module is loaded anew
    # llava-hf's files name the weights as transformers 4 did.
    register_checkpoint_conversion_mapping(LlavaReporterConfig.model_type, get_checkpoint_conversion_mapping("llava"))
AutoConfig.register(LlavaReporterConfig.model_type, LlavaReporterConfig)
AutoModel.register(LlavaReporterConfig, LlavaReporter)
AutoModelForImageTextToText.register(LlavaReporterConfig, LlavaReporter)
