"""Heads between a tower and the joint space: projections, and masks over patches. They know no tower and no loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTIONS = ("linear", "mlp", "none")


def projection(kind: str, width: int, joint: int) -> nn.Module:
    """A projection (..., width) -> (..., joint) without biases: one layer, or two around an exact GELU as in open_clip.

    "none" is none: the features are in the joint space already, as SigLIP's.

    Raises:
        ValueError: another kind than "linear", "mlp" or "none"; "none" for another width than the joint space's.
    """
    if kind == "none":
        if width != joint:
            raise ValueError(f'a projection "none" needs towers as wide as the joint space: {width} and {joint}')
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, joint, bias=False)
    if kind == "mlp":
        middle = (width + joint) // 2
        return nn.Sequential(nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, joint, bias=False))
    raise ValueError(f"a projection is one of {', '.join(PROJECTIONS)}, got {kind!r:.100}")


class CrossAttention(nn.Module):
    """Queries (B, T, width) gather from keys (B, P, width), which are the values too.

    Plain projections, not `nn.MultiheadAttention`: that one reads its output weights past ZeRO-3's gathering.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width} of the joint space")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, keep: Tensor | None = None) -> Tensor:
        """
        Args:
            keep: (B, P) bool, the keys that may be looked at; all, without it.
        """
        query, key, value = (
            layer(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, rows in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        mask = None if keep is None else keep[:, None, None]
        dropout = self.dropout if self.training else 0.0
        gathered = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(gathered.transpose(1, 2).flatten(2))


class MaskHead(nn.Module):
    """Scores patches (B, P, width) -> importance logits (B, P); above 0 a patch is to be kept.

    Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce, whose head ends in a bias of 0 and adds one learnable offset.
    """

    def __init__(self, width: int, *, normalize: bool = False) -> None:
        super().__init__()
        norm = [nn.LayerNorm(width)] if normalize else []  # for tokens between two blocks, which nothing has scaled
        self.layers = nn.Sequential(*norm, nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, 1))
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, patches: Tensor) -> Tensor:
        return self.layers(patches).squeeze(-1) + self.offset


def threshold_mask(logits: Tensor) -> Tensor:
    """1 where the logit is above 0, else 0, with the gradient of the sigmoid (straight-through)."""
    soft = logits.sigmoid()
    return (logits > 0).to(soft.dtype) + (soft - soft.detach())


def gumbel_mask(logits: Tensor, temperature: float) -> Tensor:
    """A sample of 0 and 1, 1 with the logit's probability, with the gradient of the relaxed sample.

    Ref: Jang et al. 2017 (arXiv 1611.01144), Maddison et al. 2017 (arXiv 1611.00712).
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return threshold_mask((logits + uniform.logit()) / temperature)


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """1 for the k greatest logits of each row (B, P), 0 for the others, with the gradient of the sigmoid."""
    soft = logits.sigmoid()
    hard = torch.zeros_like(soft).scatter(1, logits.topk(k, dim=1).indices, 1.0)
    return hard + (soft - soft.detach())
