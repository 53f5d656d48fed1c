"""The captioners: thin subclasses of transformers' BLIP and GIT that write a report from one radiograph.

What they add: a loss that is a token mean over the *global* batch, per-study losses for evaluation, a frozen vision
tower that stays frozen in `.train()`, any image size, and prompts that `generate` neither changes nor cuts.

The architectures are Li et al. 2022, "BLIP" (arXiv 2201.12086) and Wang et al. 2022, "GIT" (arXiv 2205.14100).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    PreTrainedTokenizerBase,
)

from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.losses import token_losses
from hf_medvlm.models.outputs import CaptionerOutput
from hf_medvlm.models.positions import mae_positions
from hf_medvlm.models.tiny import TINY_INIT, TINY_PATCH


class BlipCaptionerConfig(BlipConfig):
    """`BlipConfig` with `freeze_vision`: the vision tower is neither trained nor put into training mode."""

    model_type = "medvlm_blip"
    freeze_vision: bool = False


class GitCaptionerConfig(GitConfig):
    """`GitConfig` with `freeze_vision`: the image encoder is neither trained nor put into training mode."""

    model_type = "medvlm_git"
    freeze_vision: bool = False


class CaptionerMixin:
    """What BLIP and GIT share: the loss, the frozen tower, the image size and prompt-only generation."""

    def freeze_vision_tower(self) -> None:
        """Stop the gradient of the vision tower where the config asks for it."""
        if self.config.freeze_vision:
            self.vision_tower.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_vision_tower()  # loading replaces the parameters, and with them what __init__ froze
        return loaded

    def train(self, mode: bool = True) -> CaptionerMixin:
        super().train(mode)
        if self.config.freeze_vision:
            self.vision_tower.eval()
        return self

    def count_loss_items(self, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        """How many tokens the loss of a batch is a mean of; the trainer sums this over the global batch."""
        return {"tokens": (labels[:, 1:] != IGNORE_INDEX).sum()}

    def needs_interpolation(self, pixel_values: Tensor) -> bool:
        """Whether the images have another size than the one the position embeddings were made for."""
        return pixel_values.shape[-1] != self.config.vision_config.image_size

    def check_length(self, input_ids: Tensor) -> None:
        limit = self.config.get_text_config(decoder=True).max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"a text has {input_ids.shape[1]} tokens, the model takes {limit}; lower --max_length to that or less"
            )

    def caption_output(
        self, logits: Tensor, labels: Tensor | None, loss_denominators: dict[str, Tensor] | None, label_smoothing: float
    ) -> CaptionerOutput:
        """The output of `forward` from the logits of the text positions."""
        if labels is None:
            return CaptionerOutput(logits=logits)
        nll, tokens = token_losses(logits, labels, label_smoothing)
        count = tokens.sum() if loss_denominators is None else loss_denominators["tokens"]
        return CaptionerOutput(loss=nll.sum() / count.clamp(min=1), logits=logits, nll=nll.detach(), tokens=tokens)


class BlipCaptioner(CaptionerMixin, BlipForConditionalGeneration):
    """BLIP's image-grounded text decoder. Loads `Salesforce/blip-image-captioning-*` and its own checkpoints."""

    config_class = BlipCaptionerConfig
    processor_class = BlipProcessor
    published_types = ("blip",)
    # Tied to others, hence not in the file: the Trainer then ties them again when it loads its best checkpoint.
    _keys_to_ignore_on_save = [
        "text_decoder.cls.predictions.decoder.weight",
        "text_decoder.cls.predictions.decoder.bias",
    ]
    # The weights of the loss come from the trainer, as `loss_denominators`; nothing else may be scaled.
    accepts_loss_kwargs = False

    def __init__(self, config: BlipCaptionerConfig) -> None:
        super().__init__(config)
        self.freeze_vision_tower()

    @property
    def vision_tower(self) -> nn.Module:
        return self.vision_model

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_denominators: dict[str, Tensor] | None = None,
    ) -> CaptionerOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            input_ids, attention_mask: (B, T), padded on the right; the first token is BLIP's own `bos_token_id`.
            labels: (B, T), `IGNORE_INDEX` on the prompt and the padding.
            loss_denominators: {"tokens": ()}, the supervised tokens of the global batch; this batch's own by default.

        Raises:
            ValueError: the text is longer than the position embeddings.
        """
        self.check_length(input_ids)
        image = self.vision_model(pixel_values, interpolate_pos_encoding=self.needs_interpolation(pixel_values))
        logits = self.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image.last_hidden_state,
            use_cache=False,
        ).logits
        return self.caption_output(logits, labels, loss_denominators, self.config.text_config.label_smoothing)

    @torch.no_grad()
    def generate(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Continue the prompts `input_ids` (B, T), all of one length; returns prompt and continuation.

        transformers' own BLIP `generate` overwrites the first id in place and drops the last one; here neither is.
        """
        image = self.vision_model(pixel_values, interpolate_pos_encoding=self.needs_interpolation(pixel_values))
        states = image.last_hidden_state
        text = self.config.text_config
        return self.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            **({"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id} | options),
        )

    @staticmethod
    def first_token(config: BlipConfig) -> int:
        """BLIP's decoder starts from `[DEC]`, in training as in generation (salesforce/BLIP, `models/blip.py`)."""
        return config.text_config.bos_token_id

    @classmethod
    def tiny(cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96, **options: Any) -> BlipCaptioner:
        """A model of about a million random weights for the given tokenizer, patches of 16 pixels."""
        text = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
        text["initializer_range"] = TINY_INIT
        vision = text | {"num_hidden_layers": 3, "image_size": image_size, "patch_size": TINY_PATCH}
        text |= {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model = cls(BlipCaptionerConfig(text_config=text, vision_config=vision, **options))
        positions = model.vision_model.embeddings.position_embedding[0, 1:]
        positions.data.copy_(mae_positions(image_size // TINY_PATCH, positions.shape[-1]))
        return model

    @staticmethod
    def tiny_processor(tokenizer: PreTrainedTokenizerBase, image_size: int = 96) -> BlipProcessor:
        """Squeeze to a square, normalise, tokenise."""
        return BlipProcessor(BlipImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer)


class GitCaptioner(CaptionerMixin, GitForCausalLM):
    """GIT: one causal decoder over image and text tokens. Loads `microsoft/git-*` and its own checkpoints."""

    config_class = GitCaptionerConfig
    processor_class = GitProcessor
    published_types = ("git",)
    accepts_loss_kwargs = False

    def __init__(self, config: GitCaptionerConfig) -> None:
        super().__init__(config)
        self.freeze_vision_tower()

    @property
    def vision_tower(self) -> nn.Module:
        return self.git.image_encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        loss_denominators: dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **generation: Any,
    ) -> CaptionerOutput | Any:
        """As `BlipCaptioner.forward`; the last three are `generate`'s, which fills `position_ids` where it is named.

        Raises:
            ValueError: the text is longer than the position embeddings.
        """
        if generation:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                pixel_values=pixel_values,
                interpolate_pos_encoding=interpolate_pos_encoding,
                **generation,
            )
        self.check_length(input_ids)
        hidden = self.git(
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            use_cache=False,
            interpolate_pos_encoding=self.needs_interpolation(pixel_values),
        ).last_hidden_state
        logits = self.output(hidden[:, -input_ids.shape[1] :])  # the image tokens stand in front
        return self.caption_output(logits, labels, loss_denominators, 0.0)

    @torch.no_grad()
    def generate(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Continue the prompts `input_ids` (B, T), all of one length; returns prompt and continuation."""
        # The prompts are not padded: without a mask GIT's cache is right at any image size.
        return super().generate(
            input_ids=input_ids,
            pixel_values=pixel_values,
            interpolate_pos_encoding=self.needs_interpolation(pixel_values),
            **({"eos_token_id": self.config.eos_token_id, "pad_token_id": self.config.pad_token_id} | options),
        )

    @staticmethod
    def first_token(config: GitConfig) -> int:
        """GIT starts from `[CLS]`."""
        return config.bos_token_id

    @classmethod
    def tiny(cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96, **options: Any) -> GitCaptioner:
        """A model of about a million random weights for the given tokenizer, patches of 16 pixels."""
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
        sizes["initializer_range"] = TINY_INIT
        vision = sizes | {"image_size": image_size, "patch_size": TINY_PATCH}
        text = sizes | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "tie_word_embeddings": True,
        }
        model = cls(GitCaptionerConfig(vision_config=vision, **text, **options))
        positions = model.git.image_encoder.vision_model.embeddings.position_embedding.weight[1:]
        positions.data.copy_(mae_positions(image_size // TINY_PATCH, positions.shape[-1]))
        return model

    @staticmethod
    def tiny_processor(tokenizer: PreTrainedTokenizerBase, image_size: int = 96) -> GitProcessor:
        """Squeeze to a square, normalise, tokenise."""
        return GitProcessor(BlipImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer)


for _config, _model in ((BlipCaptionerConfig, BlipCaptioner), (GitCaptionerConfig, GitCaptioner)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForImageTextToText.register(_config, _model)
