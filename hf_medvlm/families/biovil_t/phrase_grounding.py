"""Where in the image a phrase is: cosine per patch, smoothed and brought back to the image's size as published.

Boecking et al. 2022 (arXiv 2204.09817), section 5; the steps are those of microsoft/hi-ml-multimodal's inference
engine.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from hf_medvlm.families.biovil_t.model import BioViLTModel


def similarity_map(patch_embeds: Tensor, text_embed: Tensor, sigma: float = 1.5) -> Tensor:
    """Cosine of each patch with a phrase, smoothed by a Gaussian over the grid.

    Args:
        patch_embeds: (h, w, D), normalised over D.
        text_embed: (D,) or (1, D), normalised.
        sigma: of the Gaussian, in patches; 0 leaves the map as it is.

    Returns:
        (h, w), on the CPU, in [-1, 1].
    """
    from scipy.ndimage import gaussian_filter

    similarity = (patch_embeds @ text_embed.flatten()).detach().cpu().float().numpy()
    return torch.from_numpy(gaussian_filter(similarity, sigma) if sigma else similarity)


def to_image_size(
    similarity: Tensor,
    width: int,
    height: int,
    resize_size: int | None = None,
    crop_size: int | None = None,
    interpolation: str = "nearest",
) -> np.ndarray:
    """A map over the model's crop -> a map over the whole image, NaN where the model has not looked.

    Args:
        similarity: (h, w).
        width, height: of the original image, in pixels.
        resize_size, crop_size: of the image processor; without a crop the map is stretched over the whole image,
            without a resize the crop is taken to be of the original's pixels.
        interpolation: "nearest" or "bilinear" (without aligned corners).

    Returns:
        (height, width), float32.

    Raises:
        ValueError: the crop is larger than the image.
    """
    size = (height, width)
    if crop_size is not None:
        side = int(crop_size * min(size) / resize_size) if resize_size else crop_size
        if side > min(size):
            raise ValueError(f"a crop of {side} pixels is larger than the image of {width} x {height}")
        size = (side, side)
    grid = interpolate(
        similarity[None, None], size, mode=interpolation, align_corners=None if interpolation == "nearest" else False
    )[0, 0]
    across, down = width - size[1], height - size[0]
    margins = [across // 2, math.ceil(across / 2), down // 2, math.ceil(down / 2)]
    return pad(grid, margins, value=math.nan).numpy()


@torch.no_grad()
def ground_phrase(
    model: BioViLTModel,
    pixel_values: Tensor,
    prompts: dict[str, Tensor],
    width: int,
    height: int,
    resize_size: int,
    crop_size: int,
    interpolation: str = "nearest",
) -> np.ndarray:
    """The heat map of one phrase over one image, (height, width), values in [-1, 1], NaN outside the model's crop.

    Args:
        pixel_values: (1, 3, S, S).
        prompts: one tokenised phrase, of `BioViLTProcessor.tokenize_prompts`.
        width, height, resize_size, crop_size, interpolation: see `to_image_size`.
    """
    patches = model.get_image_features(pixel_values).projected_patch_embeddings[0]  # (D, h, w)
    text = model.get_projected_text_embeddings(**prompts)[0]
    similarity = similarity_map(normalize(patches, dim=0).permute(1, 2, 0), text)
    return to_image_size(similarity, width, height, resize_size, crop_size, interpolation)
