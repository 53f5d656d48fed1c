"""The attention kernels that a GPU may take."""

from __future__ import annotations

import torch

from hf_medvlm.models.attention import take_kernels_of_any_shape


def test_cudnn_attention_is_left_out_on_cuda_alone():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        take_kernels_of_any_shape(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        take_kernels_of_any_shape(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
