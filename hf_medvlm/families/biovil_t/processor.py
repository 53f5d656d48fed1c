"""Pixels and words for `BioViLTModel`: hi-ml-multimodal's inference transform on PIL, with a tokenizer beside it.

Contrast is stretched to the whole range of each image, the shorter side becomes 512, the middle is cut out: 448 for
BioViL-T, 480 for BioViL. There is no mean and no standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers import (
    AutoProcessor,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TensorType,
)

# not from transformers itself, which in 5.17 wants torchvision for that name
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_medvlm.families.biovil_t.config import BioViLTConfig


def remap_to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Stretch from the smallest to the largest value, over all channels together, to 0..255; fractions are cut off.

    An image of one value becomes black (hi-ml-multimodal divides by zero).
    """
    pixels = pixels.astype(np.float64)
    pixels -= pixels.min()
    largest = pixels.max()
    return (pixels / (largest if largest > 0 else 1) * 255).astype(np.uint8)


class BioViLTImageProcessor(BaseImageProcessor):
    """Images of any size and depth -> `pixel_values` (B, 3, crop_size, crop_size) in [0, 1].

    Args:
        resize_size: the shorter side after resizing (bilinear, antialiased).
        crop_size: side of the square cut from the middle.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, resize_size: int = 512, crop_size: int = 448, **kwargs) -> None:
        if not 0 < crop_size <= resize_size:
            raise ValueError(f"crop_size must lie between 1 and resize_size, got {crop_size} and {resize_size}")
        super().__init__(**kwargs)
        self.resize_size, self.crop_size = resize_size, crop_size

    def preprocess(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Prepare one image or several.

        Args:
            images: PIL images or arrays (H, W) or (H, W, 3), of any number type; DICOM pixels as they are stored.
        """
        if isinstance(images, (Image.Image, np.ndarray)):
            images = [images]
        pixels = np.stack([self._prepare(np.asarray(image)) for image in images])  # (B, S, S)
        pixels = np.repeat(pixels[:, None].astype(np.float32) / 255, 3, axis=1)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _prepare(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, 3), any type -> (crop_size, crop_size), uint8."""
        image = Image.fromarray(remap_to_uint8(pixels)).convert("L")
        short = min(image.size)
        size = [self.resize_size if side == short else int(self.resize_size * side / short) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((side - self.crop_size) / 2) for side in image.size)  # halves to even, as torchvision
        return np.asarray(image.crop((left, top, left + self.crop_size, top + self.crop_size)))


class BioViLTProcessor(ProcessorMixin):
    """Image processor and tokenizer in one folder."""

    def __init__(self, image_processor: BioViLTImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)


AutoImageProcessor.register(BioViLTConfig, image_processor_classes={"pil": BioViLTImageProcessor})
AutoProcessor.register(BioViLTConfig, BioViLTProcessor)
