"""What FSDP2 shards, and along which dimension. Training with it is in test_captioning_recipes.py."""

from __future__ import annotations

import pytest
import torch
from families import build
from torch import nn

from hf_medvlm.training.fsdp import divided_dim, gathered, layers_of


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1, 64), (3, 7), (2, 3), (64, 3, 16, 16), (9, 8), (1, 6)])
@pytest.mark.parametrize("processes", [2, 3, 4, 8])
def test_every_process_gets_a_piece_or_the_parameter_stays_whole(shape, processes):
    dim = divided_dim(shape, processes)
    pieces = {place: torch.zeros(shape).chunk(processes, place) for place in range(len(shape))}
    even = [place for place, size in enumerate(shape) if place and size and size % processes == 0]
    full = shape and shape[0] and len(pieces[0]) == processes
    assert dim == (0 if full else even[0] if even else None)
    assert dim is None or (len(pieces[dim]) == processes and all(piece.numel() for piece in pieces[dim]))


def test_layers_are_those_of_all_parts_and_share_nothing(splits):
    model = build("blip", splits).model
    layers = layers_of(model)
    config = model.config
    wanted = config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers
    assert len(layers) == wanted and {type(each).__name__ for each in layers} == {"BlipEncoderLayer", "BlipTextLayer"}
    tied = nn.ModuleDict({"stack": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), "head": nn.Linear(3, 3)})
    tied["head"].weight = tied["stack"][0].weight
    assert layers_of(tied) == [tied["stack"][1]]
    with gathered(model):  # nothing is sharded, and nothing happens
        pass
