"""`LlavaReporter`: transformers' LLaVA-1.5 that reads radiographs and answers in conversations.

Its checkpoints are plain LLaVA (llava-hf's): `AutoModelForImageTextToText` opens them without this package. What the
subclass adds is for training: a loss that is a token mean over all accumulated micro-batches, images in any number a
row and none in some batches (ZeRO-3 stays in step), and an image token that needs no row in the vocabulary, so that an
original checkpoint trains with its 32000.

Knows no tokenizer and no conversation. Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning"
(arXiv 2310.03744).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from hf_medvlm.labels import IMAGE_TOKEN_INDEX
from hf_medvlm.models.towers import tokens_before
from hf_medvlm.models.upstream import SavedAsUpstream, gathered, token_mean


class LlavaReporter(SavedAsUpstream, LlavaForConditionalGeneration):
    """LLaVA for reports. Loads `llava-hf/*`, fine-tuned ones and, by `from_published`, original ones."""

    config_class = LlavaConfig
    config: Any  # upstream types its parts as `dict | PreTrainedConfig | None`

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        # A projector that trains may be in float32 beside a tower in bfloat16.
        self.model.multi_modal_projector.register_forward_pre_hook(
            lambda projector, inputs: (inputs[0].to(projector.linear_1.weight.dtype),)
        )
        self.apply_freezing()

    def apply_freezing(self) -> None:
        """No gradient for the vision layers behind the one that is read."""
        tower, chosen = self.model.vision_tower, self.config.vision_feature_layer
        name, layers = max(
            ((name, part) for name, part in tower.named_modules() if isinstance(part, nn.ModuleList)),
            key=lambda named: len(named[1]),
        )
        last = max(layer % (len(layers) + 1) for layer in ([chosen] if isinstance(chosen, int) else chosen))
        behind = [part for child, part in tower.named_children() if child not in ("embeddings", "pre_layrnorm")]
        for unread in [*layers[last:], *(part for part in behind if layers not in part.modules())]:
            unread.requires_grad_(False)
        for name, parameter in tower.named_parameters():
            if name.endswith("mask_token"):  # serves masked pretraining alone
                parameter.requires_grad_(False)

    @classmethod
    def from_published(cls, folder: str | Path, config: LlavaConfig | None = None, **options: Any) -> LlavaReporter:
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
        return patches + (tokens_before(vision) if self.config.vision_feature_select_strategy == "full" else 0)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Token embeddings (B, T, D), image features in the places of the image tokens, in order.

        A batch without images still sends a black one through tower and projector, times zero, where other processes
        may wait for it (DDP, ZeRO-3). As in LLaVA, a row without image tokens may bring an image that is not used.

        Raises:
            ValueError: image tokens and image features differ in number.
        """
        is_image = (input_ids == self.config.image_token_id) | (input_ids == IMAGE_TOKEN_INDEX)  # (B, T)
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        images = None if pixel_values is None or len(pixel_values) == 0 else pixel_values
        without = images is None
        if without and not (self.training or is_deepspeed_zero3_enabled()):
            features = embeds.new_zeros(0, self.image_tokens, embeds.shape[-1])
        else:
            images = self._black_image(embeds) if images is None else images
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
        return next(self.model.vision_tower.parameters()).dtype

    def _black_image(self, like: Tensor) -> Tensor:
        side = self.config.vision_config.image_size
        return like.new_zeros(1, 3, side, side)

    def give_image_token_a_row(self) -> None:
        """Make the vocabulary large enough for the image token, as transformers' own LLaVA wants it.

        The new rows of the output layer are the mean of the others: their logits are the mean of all logits, so that
        what a greedy search writes stays as it was.
        """
        words, token = self.config.text_config.vocab_size, self.config.image_token_id
        if token < words:
            return
        self.resize_token_embeddings(token + 1, pad_to_multiple_of=64, mean_resizing=False)
        layers: tuple[Any, Any] = (self.get_input_embeddings(), self.get_output_embeddings())
        weights: dict[int, nn.Parameter] = {id(layer.weight): layer.weight for layer in layers}
        with gathered(list(weights.values())), torch.no_grad():
            for weight in weights.values():
                if len(weight) > words:
                    weight[words:] = weight[:words].mean(0)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None, **options: Any
    ) -> Tensor:
        """As transformers'. Without `input_ids` every image is asked the question the model was trained with.

        Args:
            pixel_values: (N, 3, H, W); without `input_ids` one image a row.
        """
        if input_ids is None and "inputs_embeds" not in options and pixel_values is not None:
            image = [self.config.image_token_id]
            begin = [] if self.generation_config.bos_token_id is None else [self.generation_config.bos_token_id]
            question = getattr(self.config, "prompt_ids", None) or begin + image
            ids = [i for token in question for i in ([token] * self.image_tokens if [token] == image else [token])]
            input_ids = torch.tensor([ids], device=pixel_values.device).repeat(len(pixel_values), 1)
            options.setdefault("attention_mask", torch.ones_like(input_ids))
        if pixel_values is not None:
            options["pixel_values"] = pixel_values
        return super().generate(input_ids=input_ids, **options)  # type: ignore[misc, return-value]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **generation: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """
        Args:
            input_ids: (B, T), every image as `image_tokens` times `config.image_token_id`.
            pixel_values: (N, 3, H, W), normalised; the batch's N images in the order of their tokens, or None.
            attention_mask: (B, T). None with `position_ids` that begin again at 0: rows of several samples,
                each of which sees only itself.
            labels: (B, T), `IGNORE_INDEX` where nothing is supervised.
            num_items_in_batch: the stock `Trainer`'s count of the tokens that the loss is a mean over.
            generation: what `generate` hands to the language model.
        """
        if inputs_embeds is None:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                assert input_ids is not None, "input_ids or inputs_embeds"
                inputs_embeds = self.embed(input_ids, pixel_values)
        generation.pop("return_dict", None)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **(generation | ({"use_cache": False} if labels is not None else {})),
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        result = LlavaCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if labels is not None:
            result.loss = token_mean(logits, labels, num_items_in_batch)
        return result


# llava-hf's files name the weights as transformers 4 did. transformers renames them for its own classes alone, unless
# the mapping is registered.
register_checkpoint_conversion_mapping("llava", get_checkpoint_conversion_mapping("llava"), overwrite=True)
