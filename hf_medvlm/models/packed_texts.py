"""Texts of several lengths through a BERT without most of their padding: several to a row, none sees another.

A batch of reports padded to its longest is a third to a half padding. Grouping by length, which spares it elsewhere, is
no way out here: a contrastive batch of texts of one length has other negatives than one drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

PACKABLE = ("bert",)  # towers that count positions from `position_ids` and take a mask of (R, 1, L, L) as it is
WIDTHS = (2, 4)  # rows are so many times as long as the longest text, at most


def read_packed(tower: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
    """Last hidden states (B, T, H) of the texts, zero where the mask is; None where packing saves nothing.

    The same numbers as `tower(input_ids, attention_mask)` to rounding, wherever the mask's holes are.

    Args:
        input_ids, attention_mask: (B, T).
    """
    config = tower.config
    if config.model_type not in PACKABLE or config._attn_implementation != "sdpa":
        return None
    if torch.compiler.is_exporting():  # the plan depends on the texts' lengths, which a graph must not
        return None
    valid = attention_mask.bool()
    places, rows, width = _plan(valid.sum(1).tolist(), valid.shape[1], config.hidden_size)
    if not places:
        return None
    text, column = valid.nonzero(as_tuple=True)  # (N,) each, N tokens in all
    begins = torch.tensor(places, device=valid.device)  # (B,)
    flat = begins[text] + (valid.cumsum(1) - 1)[text, column]  # (N,), where each token goes
    ids, positions = input_ids.new_zeros(rows * width), input_ids.new_zeros(rows * width)
    ids[flat], positions[flat] = input_ids[valid], column
    owner = torch.full_like(ids, -1)
    owner[flat] = text
    owner = owner.view(rows, 1, width)
    states = tower(
        input_ids=ids.view(rows, width),
        position_ids=positions.view(rows, width),
        attention_mask=owner.unsqueeze(-1) == owner.unsqueeze(-2),  # (R, 1, L, L); what is left over sees itself
    ).last_hidden_state
    unpacked = states.new_zeros(*valid.shape, states.shape[-1])
    unpacked[valid] = states.flatten(0, 1)[flat]
    return unpacked


def _plan(lengths: Sequence[int], longest: int, hidden_size: int) -> tuple[list[int], int, int]:
    """Where each text begins among `rows * width` places, the rows and their width; no places if padding is cheaper.

    A token costs its matrices, 12 H^2, and its attention, 2 H for every place of its row (per layer, in products).
    """

    def cost(rows: int, width: int) -> int:
        return rows * width * (6 * hidden_size + width)

    best: tuple[list[int], int, int] = ([], len(lengths), longest)
    for times in WIDTHS:
        plan = _first_fit(lengths, times * longest)
        if cost(*plan[1:]) < cost(*best[1:]):
            best = plan
    return best


def _first_fit(lengths: Sequence[int], limit: int) -> tuple[list[int], int, int]:
    """The longest text first, each into the first row that has room."""
    used: list[int] = []
    placed = {}
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row, taken in enumerate(used) if taken + lengths[index] <= limit), len(used))
        if row == len(used):
            used.append(0)
        placed[index] = (row, used[row])
        used[row] += lengths[index]
    width = max(used)
    return [row * width + start for row, start in (placed[index] for index in range(len(lengths)))], len(used), width
