"""Pixels and words for the dual encoders: open_clip's transform on PIL, to the pixel, with a tokenizer beside it."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
    SiglipTokenizer,
    VisionTextDualEncoderProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_medvlm.families.dual_encoder.model import DualEncoderConfig
from hf_medvlm.families.dual_encoder.published import CONFIG_FILE
from hf_medvlm.models.convert.checkpoint import read_json
from hf_medvlm.models.loading import load_tokenizer
from hf_medvlm.models.preprocessing import BILINEAR, image_processor_of
from hf_medvlm.models.towers import max_tokens


class OpenClipImageProcessor(CLIPImageProcessorPil):
    """Shorter side to `size` (bicubic), centre crop, RGB, [0, 1], OpenAI CLIP's mean and std.

    It differs from transformers' CLIP processor where the margin to be cut is odd: torchvision, and so open_clip,
    rounds half of it to the even number, transformers down, which moves the whole image by a pixel.
    """

    def center_crop(self, image: np.ndarray, size: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """(C, H, W) -> (C, height, width)."""
        top, left = round((image.shape[1] - size.height) / 2), round((image.shape[2] - size.width) / 2)
        if top < 0 or left < 0:
            return super().center_crop(image, size, *args, **kwargs)
        return image[:, top : top + size.height, left : left + size.width]


def build_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> VisionTextDualEncoderProcessor:
    """A processor for square images of `image_size` pixels."""
    size = {"height": image_size, "width": image_size}
    return VisionTextDualEncoderProcessor(
        OpenClipImageProcessor(size={"shortest_edge": image_size}, crop_size=size), tokenizer
    )


def pair_processor(
    vision: str | Path, text: str | Path, config: DualEncoderConfig, image_size: int | None = None
) -> VisionTextDualEncoderProcessor:
    """The image processor of one folder and the tokenizer of another (or the same), as each was trained.

    Args:
        config: of the model; its text tower learns here which token pads.
        image_size: side of square images, in place of the folder's.
    """
    images = image_processor_of(vision, config.vision_config, image_size)
    return VisionTextDualEncoderProcessor(images, fit_tokenizer(load_tokenizer(text), config))


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: DualEncoderConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with a token that pads, cutting texts where the text tower's positions end."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None and tokenizer.unk_token is None:
            raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no pad, eos or unk token to pad texts with")
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    config.text_config.pad_token_id = tokenizer.pad_token_id
    limit = max_tokens(config.text_config)
    if limit:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer


def clean_as_siglip(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Make a tokenizer read texts in lower case, without punctuation: open_clip's `"clean": "canonicalize"`.

    Raises:
        ValueError: a tokenizer that cannot be made to.
    """
    if isinstance(tokenizer, SiglipTokenizer):  # does so itself
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{folder}: the texts are to be cleaned as SigLIP's were; put a tokenizer.json there")
    cleaning: list[Any] = [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    backend.normalizer = normalizers.Sequence([*cleaning, *filter(None, [backend.normalizer])])


def set_image_size(processor: Any, image_size: int) -> None:
    """Make an image processor give squares of `image_size` pixels, cropping where it did before."""
    square = {"height": image_size, "width": image_size}
    if getattr(processor, "do_center_crop", False):
        processor.size, processor.crop_size = {"shortest_edge": image_size}, square
    else:
        processor.size = square


def published_processor(
    path: str | Path, config: DualEncoderConfig, image_size: int | None = None
) -> VisionTextDualEncoderProcessor:
    """The processor of a published model with both towers: its own pixels, its tokenizer cut at the context length.

    Raises:
        ValueError: the folder has no tokenizer.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not (folder / CONFIG_FILE).is_file():
        return pair_processor(folder, folder, config, image_size)
    record = read_json(folder / CONFIG_FILE)
    model, pixels = record.get("model_cfg", {}), record.get("preprocess_cfg", {})
    tokenizer = load_tokenizer(folder)
    texts = model.get("text_cfg", {})
    tokenizer.model_max_length = texts.get("context_length", 256)
    if texts.get("tokenizer_kwargs", {}).get("clean") == "canonicalize":
        clean_as_siglip(tokenizer, folder)
    size = image_size or model.get("vision_cfg", {}).get("image_size", 224)
    processor = build_processor(fit_tokenizer(tokenizer, config), size)
    images = processor.image_processor
    images.image_mean = pixels.get("mean", images.image_mean)
    images.image_std = pixels.get("std", images.image_std)
    if pixels.get("interpolation") == "bilinear":
        images.resample = BILINEAR
    if pixels.get("resize_mode") == "squash":
        images.do_center_crop, images.size = False, {"height": size, "width": size}
    return processor


AutoImageProcessor.register(DualEncoderConfig, image_processor_classes={"pil": OpenClipImageProcessor})
AutoProcessor.register(DualEncoderConfig, VisionTextDualEncoderProcessor)
