"""How the pixels of a checkpoint are prepared: its own image processor, else a stated default of its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_medvlm.models.loading import has_image_processor, load_image_processor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# What the published models of an architecture were trained on: mean, std, resampling. Others: ImageNet's.
DEFAULTS = {
    "clip": (CLIP_MEAN, CLIP_STD, BICUBIC),
    "clip_vision_model": (CLIP_MEAN, CLIP_STD, BICUBIC),
    "siglip": (HALF, HALF, BICUBIC),
    "siglip_vision_model": (HALF, HALF, BICUBIC),
    "vit": (HALF, HALF, BILINEAR),
}
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD, BICUBIC)


def default_image_processor(config: PreTrainedConfig, image_size: int | None = None) -> BaseImageProcessor:
    """The whole image squeezed to the tower's square, with the mean and std that its architecture is trained on.

    Raises:
        ValueError: SigLIP 2's NaFlex, whose patches no default makes.
    """
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise ValueError("SigLIP 2 (NaFlex) cuts its patches itself; its folder needs a preprocessor_config.json")
    mean, std, resample = DEFAULTS.get(config.model_type, IMAGENET)
    size = image_size or getattr(config, "image_size", None) or 224
    size = size if isinstance(size, int) else size[0]
    return ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=list(mean), image_std=list(std), resample=resample
    )


def image_processor_of(path: str | Path, config: PreTrainedConfig, image_size: int | None = None) -> BaseImageProcessor:
    """The image processor that lies in a folder, else the default of the tower's architecture.

    Args:
        config: of the vision tower. image_size: side of square images, in place of the folder's size.
    """
    if has_image_processor(path):
        return load_image_processor(path, image_size)
    return default_image_processor(config, image_size)


def describe_pixels(processor: Any) -> str:
    """Size, resampling, crop, padding, mean and std in words, for a preflight."""
    parts = [type(processor).__name__]
    if getattr(processor, "max_num_patches", None):
        parts.append(f"at most {processor.max_num_patches} patches of {processor.patch_size} pixels, aspect kept")
    elif getattr(processor, "resize_size", None):
        parts.append(f"shorter side {processor.resize_size}, middle {processor.crop_size} cut out")
    else:
        size = dict(getattr(processor, "size", None) or {})
        if getattr(processor, "do_pad", None):
            parts.append("padded to a square")
        if getattr(processor, "do_resize", True) and size:
            shown = f"{size['height']} x {size['width']}" if size.get("height") else None
            parts.append(shown or ", ".join(f"{name} {value}" for name, value in size.items() if value))
            resample = getattr(processor, "resample", None)
            parts.append(RESAMPLING.get(int(resample) if resample is not None else 2, str(resample)))
        if getattr(processor, "do_center_crop", None):
            crop = dict(processor.crop_size)
            parts.append(f"middle {crop.get('height')} x {crop.get('width')} cut out")
        else:
            parts.append("no crop")
    if getattr(processor, "do_normalize", None):
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            values = values if isinstance(values, (list, tuple)) else [values]
            parts.append(f"{name} {'/'.join(f'{value:.4g}' for value in values)}")
    else:
        parts.append("no mean and std")
    return ", ".join(parts)
