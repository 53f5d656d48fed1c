"""Pixels and words for the dual encoders: open_clip's transform on PIL, to the pixel, with a tokenizer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig
from hf_medvlm.families.dual_encoder.published import CONFIG_FILE
from hf_medvlm.models.loading import load_tokenizer


class OpenClipImageProcessor(CLIPImageProcessorPil):
    """Shorter side to `size` (bicubic), centre crop, RGB, [0, 1], OpenAI CLIP's mean and std.

    It differs from transformers' CLIP processor where the margin to be cut is odd: torchvision, and so open_clip,
    rounds half of it to the even number, transformers down, which moves the whole image by a pixel.
    """

    def center_crop(self, image: np.ndarray, size: Any, **kwargs: Any) -> np.ndarray:
        """(C, H, W) -> (C, height, width)."""
        top, left = round((image.shape[1] - size.height) / 2), round((image.shape[2] - size.width) / 2)
        if top < 0 or left < 0:
            return super().center_crop(image, size, **kwargs)
        return image[:, top : top + size.height, left : left + size.width]


def build_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> VisionTextDualEncoderProcessor:
    """A processor for square images of `image_size` pixels."""
    size = {"height": image_size, "width": image_size}
    return VisionTextDualEncoderProcessor(
        OpenClipImageProcessor(size={"shortest_edge": image_size}, crop_size=size), tokenizer
    )


def published_processor(folder: str | Path) -> VisionTextDualEncoderProcessor:
    """The processor of an open_clip folder: its mean and std, its image size, its tokenizer cut at the context length.

    Raises:
        ValueError: the folder has no tokenizer.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    model, pixels = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = model.get("text_cfg", {}).get("context_length", 256)
    processor = build_processor(tokenizer, model.get("vision_cfg", {}).get("image_size", 224))
    processor.image_processor.image_mean = pixels.get("mean", processor.image_processor.image_mean)
    processor.image_processor.image_std = pixels.get("std", processor.image_processor.image_std)
    return processor


AutoImageProcessor.register(DualEncoderConfig, image_processor_classes={"pil": OpenClipImageProcessor})
AutoProcessor.register(DualEncoderConfig, VisionTextDualEncoderProcessor)
