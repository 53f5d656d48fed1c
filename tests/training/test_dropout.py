"""With dropout, the loss of a global batch and of the same batch in pieces are equal in expectation.

Without it they are equal number for number (contract point 3, tests/test_contract.py). Dropout draws for a batch and
not for a study, so that other pieces draw other numbers.
"""

from __future__ import annotations

import math

import pytest
import torch
from families import build
from torch import nn

DRAWS = 40
RATE = 0.1  # of BERT, and of MedKLIP's decoder


@pytest.mark.parametrize("name", ["medklip", "git"])
def test_the_mean_over_draws_is_the_same_whole_and_in_pieces(name, splits):
    family = build(name, splits)
    places = 0
    for module in family.model.modules():
        if isinstance(module, nn.Dropout):
            module.p, places = RATE, places + 1
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = RATE
    assert places > 2
    family.model.train()
    studies = list(splits.train[:6])
    whole, pieces = [studies], [studies[:1], studies[1:]]  # of unequal size: a mean of means would show
    drawn = []
    with torch.no_grad():
        for cut in (whole, pieces):
            batches = [family.collator(False)(part) for part in cut]
            totals: dict[str, torch.Tensor] = {}
            for batch in batches:
                for key, count in family.objective.count(batch).items():
                    totals[key] = totals.get(key, 0) + count
            losses = []
            for draw in range(DRAWS):
                torch.manual_seed(draw)
                losses.append(sum(family.objective(family.model, batch, totals).loss.item() for batch in batches))
            values = torch.tensor(losses, dtype=torch.float64)
            drawn.append((values.mean().item(), values.std().item() / math.sqrt(DRAWS), values))
    (mean, error, values), (mean_cut, error_cut, values_cut) = drawn
    assert not torch.equal(values, values_cut), "dropout is at work"
    assert abs(mean - mean_cut) < 4 * math.hypot(error, error_cut)
    assert 4 * math.hypot(error, error_cut) < 0.1 * mean, "a wrong share of a piece would be seen"
