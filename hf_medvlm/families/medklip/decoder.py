"""MedKLIP's decoder: entities ask, patches answer. Knows neither where the patches come from nor what is asked for.

Pre-norm layers of self-attention among the entities, cross-attention to the patches and a feed-forward net, without any
position encoding. Wu et al. 2023, "MedKLIP" (arXiv 2301.02228); the layer is DETR's (facebookresearch/detr).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu, scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention with biases, as `nn.MultiheadAttention`, in four layers that ZeRO-3 can gather."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, width / heads)

    def forward(self, queries: Tensor, memory: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            queries: (B, E, D). memory: (B, P, D).

        Returns:
            (B, E, D), and the weights (B, E, P), the mean over the heads, where they are asked for.
        """
        q, k, v = self._split(self.q_proj(queries)), self._split(self.k_proj(memory)), self._split(self.v_proj(memory))
        rate = self.dropout if self.training else 0.0
        if need_weights:
            weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
            states, mean = dropout(weights, rate) @ v, weights.mean(1)
        else:
            states, mean = scaled_dot_product_attention(q, k, v, dropout_p=rate), None
        return self.out_proj(states.transpose(1, 2).flatten(2)), mean


class DecoderLayer(nn.Module):
    """One layer; the names of the parts are the published ones but for the attentions' projections."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.multihead_attn = Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, entities: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, D), (B, P, D) -> (B, E, D) and where each entity looked, (B, E, P), each row summing to 1."""
        states = self.norm1(entities)
        entities = entities + self.dropout(self.self_attn(states, states, need_weights=False)[0])
        attended, weights = self.multihead_attn(self.norm2(entities), patches, need_weights=True)
        entities = entities + self.dropout(attended)
        hidden = self.dropout(relu(self.linear1(self.norm3(entities))))
        return entities + self.dropout(self.linear2(hidden)), weights


class EntityDecoder(nn.Module):
    """All layers and the final norm."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, entities: Tensor, patches: Tensor, run=None) -> tuple[Tensor, Tensor]:
        """(B, E, D), (B, P, D) -> (B, E, D) and the location maps (B, E, P), the mean over the layers.

        Args:
            run: calls a layer, for gradient checkpointing; by default plainly.
        """
        maps = []
        for layer in self.layers:
            entities, weights = layer(entities, patches) if run is None else run(layer.__call__, entities, patches)
            maps.append(weights)
        return self.norm(entities), torch.stack(maps).mean(0)
