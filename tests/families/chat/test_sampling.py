"""The modality- and length-grouped order: LLaVA's own, a permutation, and one modality a mega-batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_medvlm.families.chat.sampling import (
    ModalityLengthSampler,
    group_by_length,
    group_by_modality_and_length,
    split_to_even_chunks,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "llava_preprocess" / "golden.json"


def test_the_order_is_llavas():
    golden = json.loads(GOLDEN.read_text())["sampler"]
    case = golden["split_to_even_chunks"]
    lengths = dict(zip(case["indices"], case["lengths"], strict=True))
    assert split_to_even_chunks(case["indices"], lengths, case["num_chunks"]) == case["result"]
    torch.manual_seed(0)
    order = group_by_modality_and_length(golden["lengths"], 2, 2, torch.Generator().manual_seed(0))
    assert order == golden["modality_grouped_batch2_world2_global_seed0_generator_seed0"]


def lengths(count: int, texts: int) -> list[int]:
    drawn = torch.randint(1, 300, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return [-length if place < texts else length for place, length in enumerate(drawn)]


@pytest.mark.parametrize("texts", [0, 37, 200])
def test_every_sample_once_and_one_modality_a_mega_batch(texts):
    counts = lengths(200, texts)
    order = group_by_modality_and_length(counts, 4, 2, torch.Generator().manual_seed(1))
    assert sorted(order) == list(range(200))
    whole = [order[start : start + 8] for start in range(0, len(order), 8)]
    mixed = [batch for batch in whole if len({counts[index] > 0 for index in batch}) > 1]
    assert len(mixed) <= 2  # the tails of both modalities, joined at the end


def test_the_processes_get_even_work():
    """What LLaVA's dealing is for: no process waits for the one that drew the long samples."""
    counts = lengths(384, 0)

    def unevenness(order: list[int]) -> float:
        totals = torch.tensor([counts[index] for index in order]).view(-1, 8, 4).sum(2).float()  # (step, process)
        return (totals.amax(1) / totals.mean(1)).mean().item() - 1

    grouped = group_by_length(counts, 4, 8, torch.Generator().manual_seed(0))
    assert unevenness(grouped) < 0.3 * unevenness(list(range(384)))


def test_epochs_differ_and_repeat():
    first, second = (ModalityLengthSampler(lengths(50, 9), 4, 2, seed=3) for _ in range(2))
    start = list(first)
    first.set_epoch(1)
    second.set_epoch(1)
    assert list(first) == list(second) != start and len(first) == 50


def test_a_length_of_nothing_is_refused():
    with pytest.raises(ValueError, match="found a 0"):
        group_by_modality_and_length([1, 0, -1], 1, 1)
