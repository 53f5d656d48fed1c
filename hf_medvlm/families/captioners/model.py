"""The captioners: thin subclasses of transformers' BLIP and GIT that write a report from one radiograph.

Their checkpoints are plain BLIP and GIT: `AutoModelForImageTextToText` opens them without this package. What the
subclasses put right is for who uses them in Python: the loss of `forward(labels=...)` is a token mean over all
accumulated micro-batches, images of any size are taken, and `generate` neither changes its prompt nor cuts it.

The architectures are Li et al. 2022, "BLIP" (arXiv 2201.12086) and Wang et al. 2022, "GIT" (arXiv 2205.14100).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    GenerationConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.families.captioners.processor import prompt_tokenizer
from hf_medvlm.models.positions import mae_positions
from hf_medvlm.models.tiny import TINY_INIT, TINY_PATCH
from hf_medvlm.models.upstream import SavedAsUpstream, token_mean


class CaptionerMixin(SavedAsUpstream):
    """What BLIP and GIT share: image sizes, and what `generate` is to do by default."""

    config: Any  # upstream types its parts as `dict | PreTrainedConfig | None`

    @property
    def label_smoothing(self) -> float:
        """Label smoothing of the loss that the model was published with."""
        return 0.0

    @staticmethod
    def first_token(config: Any) -> int:
        """The token that a report begins after."""
        raise NotImplementedError

    @staticmethod
    def end_token(config: Any) -> int:
        """The token that ends a report."""
        raise NotImplementedError

    @classmethod
    def make_processor(cls, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        """The processor that a fine-tuned model is saved with."""
        raise NotImplementedError

    def needs_interpolation(self, pixel_values: Tensor) -> bool:
        """Whether the images have another size than the one the position embeddings were made for."""
        return pixel_values.shape[-1] != self.config.vision_config.image_size

    def check_length(self, input_ids: Tensor) -> None:
        """Raise `ValueError` where the text has more tokens than the model has positions."""
        limit = self.config.get_text_config(decoder=True).max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"a text has {input_ids.shape[1]} tokens, the model takes {limit}; lower --max_length to that or less"
            )

    def set_generation(self, max_new_tokens: int, num_beams: int = 1) -> None:
        """What `generate` does unless told otherwise, kept in `generation_config.json`.

        Args:
            max_new_tokens: where a report ends if the model does not end it.
            num_beams: 1 for greedy search.
        """
        text = self.config.get_text_config(decoder=True)
        self.generation_config = GenerationConfig(
            bos_token_id=text.bos_token_id,
            eos_token_id=self.end_token(self.config),
            pad_token_id=text.pad_token_id,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
        )

    @classmethod
    def tiny_processor(cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96) -> ProcessorMixin:
        """Squeeze to a square, normalise, tokenise."""
        image_processor = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
        return cls.make_processor(image_processor, tokenizer)

    def resize_images(self, image_size: int) -> None:
        """Make `image_size` the model's own: its position embeddings are interpolated once, bicubically.

        A checkpoint fine-tuned at another size than it was pretrained at then opens in plain transformers, which takes
        images of the configuration's size.

        Raises:
            ValueError: the size is no multiple of the patch size.
        """
        vision = self.config.vision_config
        if image_size == vision.image_size:
            return
        if image_size % vision.patch_size:
            raise ValueError(f"--image_size {image_size} is no multiple of the model's patches of {vision.patch_size}")
        side = image_size // vision.patch_size
        self._resize_positions(side)
        vision.image_size = image_size

    def _resize_positions(self, side: int) -> None:
        raise NotImplementedError


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1 + P, D) of a class token and a square of P patches, for a square of `side` x `side`."""
    grid = int((len(positions) - 1) ** 0.5)
    patches = positions[1:].T.reshape(1, -1, grid, grid)
    patches = F.interpolate(patches.float(), size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((positions[:1], patches.flatten(2)[0].T.to(positions.dtype)))


class BlipCaptioner(CaptionerMixin, BlipForConditionalGeneration):
    """BLIP's image-grounded text decoder. Loads `Salesforce/blip-image-captioning-*` and fine-tuned ones."""

    config_class = BlipConfig
    # Tied to others, hence not in the file: the Trainer then ties them again when it loads its best checkpoint.
    _keys_to_ignore_on_save = [
        "text_decoder.cls.predictions.decoder.weight",
        "text_decoder.cls.predictions.decoder.bias",
    ]

    @property
    def label_smoothing(self) -> float:
        """BLIP's own, of the text configuration."""
        return self.config.text_config.label_smoothing

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> Any:
        """As transformers', but for the loss.

        Args:
            pixel_values: (B, 3, H, W), normalised, of any size.
            input_ids, attention_mask: (B, T), padded on the right; the first token is BLIP's own `bos_token_id`.
            labels: (B, T), -100 on the prompt and the padding. With them, `loss` is a mean over the tokens.
            num_items_in_batch: the stock `Trainer`'s count of the tokens that the mean is over.

        Raises:
            ValueError: the text is longer than the position embeddings.
        """
        self.check_length(input_ids)
        options.setdefault("interpolate_pos_encoding", self.needs_interpolation(pixel_values))
        output = super().forward(pixel_values, input_ids, attention_mask, **options)
        if labels is not None:
            output.loss = token_mean(output.logits, labels, num_items_in_batch, self.label_smoothing)
        return output

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue the prompts `input_ids` (B, T), all of one length; returns prompt and continuation.

        Without `input_ids` the report begins from nothing. transformers' own `generate` changes the caller's tensor,
        drops the last token whatever it is, and reads nothing of `generation_config`.
        """
        text = self.config.text_config
        if input_ids is None:
            input_ids = torch.full((len(pixel_values), 1), text.bos_token_id, device=pixel_values.device)
        else:
            input_ids, attention_mask = self._open_prompt(input_ids, attention_mask)
        interpolate = options.pop("interpolate_pos_encoding", self.needs_interpolation(pixel_values))
        states = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate).last_hidden_state
        options.setdefault("generation_config", self.generation_config)
        return self.text_decoder.generate(  # type: ignore[misc, return-value]
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            **({"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id} | options),
        )

    def _open_prompt(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The prompt as the decoder was trained to go on from it: `[DEC]` in front, and no end."""
        text, width = self.config.text_config, input_ids.shape[1]
        while width > 1 and all(i in (text.sep_token_id, text.pad_token_id) for i in input_ids[:, width - 1].tolist()):
            width -= 1
        input_ids = input_ids[:, :width].clone()
        input_ids[:, 0] = text.bos_token_id
        return input_ids, None if attention_mask is None else attention_mask[:, :width]

    def set_generation(self, max_new_tokens: int, num_beams: int = 1) -> None:
        super().set_generation(max_new_tokens, num_beams)
        # transformers' BLIP generates by the text decoder's settings, which come from its configuration alone.
        self.config.text_config.max_new_tokens = max_new_tokens
        self.text_decoder.generation_config.max_new_tokens = max_new_tokens

    def _resize_positions(self, side: int) -> None:
        embeddings: Any = self.vision_model.embeddings
        positions = interpolate_positions(embeddings.position_embedding.data[0], side)
        embeddings.position_embedding = nn.Parameter(positions[None])
        embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1
        embeddings.image_size = side * embeddings.patch_size

    @staticmethod
    def first_token(config: Any) -> int:
        """BLIP's decoder starts from `[DEC]`, in training as in generation (salesforce/BLIP, `models/blip.py`)."""
        return config.text_config.bos_token_id

    @staticmethod
    def end_token(config: Any) -> int:
        """`[SEP]`; the `eos_token_id` of published configurations is not what a caption ends with."""
        return config.text_config.sep_token_id

    @classmethod
    def tiny(cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96) -> BlipCaptioner:
        """A model of about a million random weights for the given tokenizer, patches of 16 pixels."""
        text: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "initializer_range": TINY_INIT}
        text |= {"num_hidden_layers": 2, "num_attention_heads": 4}
        vision = text | {"num_hidden_layers": 3, "image_size": image_size, "patch_size": TINY_PATCH}
        text |= {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model = cls(BlipConfig(text_config=text, vision_config=vision))
        positions = model.vision_model.embeddings.position_embedding[0, 1:]
        positions.data.copy_(mae_positions(image_size // TINY_PATCH, positions.shape[-1]))
        return model

    @classmethod
    def make_processor(cls, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> BlipProcessor:
        """The processor that a fine-tuned model is saved with."""
        return BlipProcessor(image_processor, prompt_tokenizer(tokenizer, last=tokenizer.pad_token))


class GitCaptioner(CaptionerMixin, GitForCausalLM):
    """GIT: one causal decoder over image and text tokens. Loads `microsoft/git-*` and fine-tuned ones."""

    config_class = GitConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        position_ids: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **options: Any,
    ) -> Any:
        """As transformers', but for the loss, as of `BlipCaptioner.forward`; `logits` has the image tokens in front.

        `generate` reads from the signature that it may pass the last two.

        Raises:
            ValueError: the text is longer than the position embeddings.
        """
        if input_ids is not None:
            self.check_length(input_ids)
        if interpolate_pos_encoding is None:
            interpolate_pos_encoding = pixel_values is not None and self.needs_interpolation(pixel_values)
        options["interpolate_pos_encoding"] = interpolate_pos_encoding
        output = super().forward(input_ids, attention_mask, position_ids, pixel_values, **options)
        if labels is not None:
            output.loss = token_mean(output.logits, labels, num_items_in_batch)
        return output

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue the prompts `input_ids` (B, T), all of one length; returns prompt and continuation.

        Without `input_ids` the report begins from nothing.
        """
        if input_ids is None:
            input_ids = torch.full((len(pixel_values), 1), self.first_token(self.config), device=pixel_values.device)
        interpolate = options.pop("interpolate_pos_encoding", self.needs_interpolation(pixel_values))
        # The prompts are not padded: without a mask GIT's cache is right at any image size.
        return super().generate(  # type: ignore[misc, return-value]
            input_ids=input_ids,
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate,
            **({"eos_token_id": self.config.eos_token_id, "pad_token_id": self.config.pad_token_id} | options),
        )

    def _resize_positions(self, side: int) -> None:
        embeddings: Any = self.git.image_encoder.vision_model.embeddings
        positions = interpolate_positions(embeddings.position_embedding.weight.data, side)
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)
        embeddings.position_ids = torch.arange(len(positions), device=positions.device)[None]
        embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1
        embeddings.image_size = side * embeddings.patch_size
        for layer in self.git.encoder.layer:
            layer.attention.self.image_patch_tokens = len(positions)

    @staticmethod
    def first_token(config: Any) -> int:
        """GIT starts from `[CLS]`."""
        return config.bos_token_id

    @staticmethod
    def end_token(config: Any) -> int:
        """GIT ends with `[SEP]`."""
        return config.eos_token_id

    @classmethod
    def tiny(cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 96) -> GitCaptioner:
        """A model of about a million random weights for the given tokenizer, patches of 16 pixels."""
        sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "initializer_range": TINY_INIT}
        sizes |= {"num_hidden_layers": 3, "num_attention_heads": 4}
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
        model = cls(GitConfig(vision_config=vision, **text))
        positions = model.git.image_encoder.vision_model.embeddings.position_embedding.weight[1:]
        positions.data.copy_(mae_positions(image_size // TINY_PATCH, positions.shape[-1]))
        return model

    @classmethod
    def make_processor(cls, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> GitProcessor:
        """The processor that a fine-tuned model is saved with."""
        return GitProcessor(image_processor, prompt_tokenizer(tokenizer))
