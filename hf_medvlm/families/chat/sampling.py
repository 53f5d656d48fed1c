"""The order of training samples: LLaVA's grouping by modality and length. Knows lengths only.

The batches of one step then hold samples either all with images or all without, and the processes get even work. (It
does not save padding, as is often thought: `--train_sampling_strategy group_by_length` and packing do.)
haotian-liu/LLaVA @ c121f043, `llava/train/llava_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], chunks: int) -> list[list[int]]:
    """Deal `indices` (longest first) to `chunks` lists of one size, such that their total lengths come out even."""
    if len(indices) % chunks:
        return [list(indices[start::chunks]) for start in range(chunks)]
    size = len(indices) // chunks
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    totals = [0.0] * chunks
    for index in indices:
        shortest = totals.index(min(totals))
        dealt[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(dealt[shortest]) == size:
            totals[shortest] = float("inf")
    return dealt


def group_by_length(
    lengths: Sequence[int], batch_size: int, chunks: int, generator: torch.Generator | None = None
) -> list[int]:
    """A random order in which the batches of one step come to about the same total length.

    Args:
        batch_size: samples of a micro-batch in one process.
        chunks: processes x accumulation steps; `batch_size * chunks` samples are drawn at random, sorted, dealt.
        generator: torch's global one by default.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * chunks
    result = []
    for start in range(0, len(order), size):
        mega_batch = sorted(order[start : start + size], key=lambda index: lengths[index], reverse=True)
        for batch in split_to_even_chunks(mega_batch, lengths, chunks):
            result += batch
    return result


def group_by_modality_and_length(
    lengths: Sequence[int],
    batch_size: int,
    chunks: int,
    generator: torch.Generator | None = None,
    within: torch.Generator | None = None,
) -> list[int]:
    """`group_by_length` for samples with images (length above 0) and without (below 0) apart, in mixed mega-batches.

    Args:
        generator: orders the mega-batches.
        within: orders the samples of a modality; LLaVA takes torch's global generator, the default.

    Raises:
        ValueError: a length is 0, which says nothing of the modality.
    """
    if any(length == 0 for length in lengths):
        raise ValueError("lengths must be above 0 for samples with images and below 0 for those without; found a 0")
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        return group_by_length(lengths, batch_size, chunks, generator)
    size = batch_size * chunks
    mega_batches, rest = [], []
    for sign in (1, -1):
        members = [index for index, length in enumerate(lengths) if length * sign > 0]
        by_length = group_by_length([abs(lengths[index]) for index in members], batch_size, chunks, within)
        batches = [[members[i] for i in by_length[start : start + size]] for start in range(0, len(by_length), size)]
        mega_batches += batches[:-1]
        rest += batches[-1]
    order = torch.randperm(len(mega_batches), generator=generator).tolist()
    return [index for batch in [*(mega_batches[place] for place in order), sorted(rest)] for index in batch]


class ModalityLengthSampler(Sampler[int]):
    """`group_by_modality_and_length`, anew in each epoch, and the same on every process and after a resume.

    Args:
        lengths: of all samples, see `hf_medvlm.data.conversations.modality_length`.
        batch_size: samples of a micro-batch in one process.
        chunks: processes x accumulation steps.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, chunks: int, seed: int = 0) -> None:
        self.lengths, self.batch_size, self.chunks, self.seed = list(lengths), batch_size, chunks, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(group_by_modality_and_length(self.lengths, self.batch_size, self.chunks, generator, generator))
