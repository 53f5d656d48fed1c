"""BioViL-T's temporal pooler: a small transformer in which the patches of an image look at those of an earlier one.

Knows neither where the patches come from nor what becomes of them. Bannur et al. 2023, "Learning to Exploit Temporal
Structure for Biomedical Vision-Language Processing" (arXiv 2301.04558); names of parameters as in hi-ml-multimodal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_medvlm.models.positions import detr_positions


class Attention(nn.Module):
    """Multi-head self-attention; no bias on queries, keys and values, dropout on the weights and on the output."""

    def __init__(self, dim: int, heads: int, drop: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.proj_q = nn.Linear(dim, dim, bias=False)
        self.proj_k = nn.Linear(dim, dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self._qkv()
        )  # (B, heads, N, d)
        attended = scaled_dot_product_attention(q, k, v, dropout_p=self.drop if self.training else 0.0)
        return dropout(self.proj(attended.transpose(1, 2).flatten(2)), self.drop, self.training)

    def _qkv(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.proj_q, self.proj_k, self.proj_v


class Mlp(nn.Module):
    """Linear, exact GELU, dropout, linear, dropout."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = dropout(gelu(self.fc1(x)), self.drop, self.training)
        return dropout(self.fc2(x), self.drop, self.training)


class Block(GradientCheckpointingLayer):
    """Pre-norm block; place and time are added to the queries, keys *and values* of every block, as published."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, drop)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """x (B, N, dim), place (N, dim) -> (B, N, dim)."""
        x = x + self._skip(self.attn(self.norm1(x) + place))
        return x + self._skip(self.mlp(self.norm2(x)))

    def _skip(self, branch: Tensor) -> Tensor:
        """Stochastic depth: whole samples of the branch are left out in training, the others scaled up."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * keep / (1 - self.drop_path)


class TemporalPooler(nn.Module):
    """Patches of the current image after they have looked at those of the previous image.

    Args:
        dim: channels of a patch, a multiple of 4 (sine and cosine of two axes) and of `heads`.
        drop: dropout of tokens, attention and MLP. drop_path: stochastic depth, the same in every block.
    """

    def __init__(
        self,
        dim: int = 256,
        layers: int = 3,
        heads: int = 8,
        mlp_ratio: float = 1.0,
        drop: float = 0.1,
        drop_path: float = 0.25,
    ) -> None:
        super().__init__()
        if dim % 4 or dim % heads:
            raise ValueError(f"the pooler's width must be a multiple of 4 and of its {heads} heads, got {dim}")
        self.drop = drop
        self.type_embed = nn.Parameter(torch.zeros(2, 1, dim))  # current, previous
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, drop, drop_path) for _ in range(layers))
        self.norm_post = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """Two grids (B, dim, h, w) -> the current one (B, dim, h, w), changed by the previous one."""
        height, width = current.shape[-2:]
        positions = detr_positions(height, width, current.shape[1], current.device).to(current.dtype)
        place = torch.cat((positions + self.type_embed[0], positions + self.type_embed[1]))  # (2hw, dim)
        tokens = torch.cat((current.flatten(2), previous.flatten(2)), dim=2).mT  # (B, 2hw, dim)
        tokens = dropout(tokens, self.drop, self.training)
        for block in self.blocks:
            tokens = block(tokens, place)
        tokens = self.norm_post(tokens)[:, : height * width]
        return tokens.mT.unflatten(2, (height, width))
