"""Which attention kernel a GPU takes, where every batch has a shape of its own."""

from __future__ import annotations

import torch


def take_kernels_of_any_shape(device: torch.device) -> None:
    """On CUDA, leave cuDNN's attention out: the flash and the memory-efficient kernel serve every shape at once.

    cuDNN builds a plan for each new shape, which took 10 to 15 ms a layer on an H200, more than the layer itself, and
    reports give nearly every batch another length, and writing gives every token another. Holds for the process.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
