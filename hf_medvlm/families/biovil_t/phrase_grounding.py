"""Where in the image a phrase is: cosine per patch, smoothed and brought back to the image's size as published.

Boecking et al. 2022 (arXiv 2204.09817), section 5; the steps are those of microsoft/hi-ml-multimodal's inference
engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_medvlm.evaluation.maps import to_image_size

__all__ = ["similarity_map", "to_image_size"]


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
