"""Packed texts give what padded ones give, gradients too, and none sees its neighbour."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from hf_medvlm.models import packed_texts
from hf_medvlm.models.encoding import encode_text
from hf_medvlm.models.packed_texts import read_packed
from hf_medvlm.models.towers import build_tower

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}


def texts(lengths: list[int], holes: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T); padding on the right or on the left, or masked anywhere."""
    draw = torch.Generator().manual_seed(0)
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    if holes == "left":
        mask = mask.flip(1)
    elif holes == "anywhere":
        mask = torch.stack([row[torch.randperm(width, generator=draw)] for row in mask])
    return torch.randint(5, 50, mask.shape, generator=draw), mask


def tower():
    torch.manual_seed(0)
    return build_tower(BertConfig(**SMALL)).eval()


@pytest.mark.parametrize("holes", ["right", "left", "anywhere"])
@pytest.mark.parametrize("lengths", [[3, 40, 11, 25, 7, 38, 2, 19, 1], [5, 60], [30, 1, 1, 1, 1, 1, 1]])
def test_packed_texts_give_the_states_and_gradients_of_padded_ones(lengths, holes):
    ids, mask = texts(lengths, holes)
    packed, padded = tower(), tower()
    states = read_packed(packed, ids, mask)
    assert states is not None
    wanted = padded(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (name, ours), theirs in zip(packed.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_no_text_sees_another():
    ids, mask = texts([3, 40, 11, 25, 7])
    model = tower()
    before = read_packed(model, ids, mask)
    ids[2] = 49 - ids[2]
    after = read_packed(model, ids, mask)
    changed = (before - after).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("lengths", [[12], [12, 12, 12], [12, 11, 12]])
def test_what_has_hardly_any_padding_is_not_packed(lengths):
    assert read_packed(tower(), *texts(lengths)) is None


def test_other_towers_are_read_padded():
    ids, mask = texts([3, 40, 11, 25, 7])
    roberta = build_tower(RobertaConfig(**SMALL, max_position_embeddings=64)).eval()
    assert read_packed(roberta, ids, mask) is None
    assert encode_text(roberta, ids, mask).tokens.shape == (5, 40, 64)
    eager = tower()
    eager.set_attn_implementation("eager")
    assert read_packed(eager, ids, mask) is None


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_both_ways_of_pooling_read_packed_texts(pooling, monkeypatch):
    ids, mask = texts([3, 40, 11, 25, 7])
    model = tower()
    packed = encode_text(model, ids, mask, pooling).pooled
    monkeypatch.setattr(packed_texts, "PACKABLE", ())
    torch.testing.assert_close(packed, encode_text(model, ids, mask, pooling).pooled, rtol=1e-5, atol=1e-5)


def test_every_place_is_taken_once():
    lengths = torch.randint(1, 100, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    begins, rows, width = packed_texts._plan(lengths, max(lengths), 768)
    taken = [place for begin, length in zip(begins, lengths, strict=True) for place in range(begin, begin + length)]
    assert len(set(taken)) == len(taken) == sum(lengths) and max(taken) < rows * width
    assert all(begin // width == (begin + length - 1) // width for begin, length in zip(begins, lengths, strict=True))
    assert rows * width < 1.1 * sum(lengths)  # padded to the longest they would take 1.98 times as much
