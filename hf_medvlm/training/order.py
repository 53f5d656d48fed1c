"""The order of training samples that lie in shards: mixed within a buffer, so that a disk reads on without jumps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

BUFFER = 1000
"""Samples that are mixed at a time where `--shuffle_buffer` is left out, as many as `datasets` mixes."""
PIECES = 4
"""A buffer holds so many runs of neighbouring samples, each from another place of the corpus."""


class BufferedSampler(Sampler[int]):
    """Each sample once an epoch: runs of neighbours in random order, mixed within the buffer that they fill.

    A function of `seed` and epoch alone: the same in every process and after a resume, which need no state of it.

    Args:
        count: samples.
        buffer: how many are mixed at a time.
    """

    def __init__(self, count: int, buffer: int, seed: int = 0) -> None:
        self.count, self.buffer, self.seed = count, buffer, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        size = max(self.buffer // PIECES, 1)
        starts = rng.permutation(-(-self.count // size)) * size
        filled = 0
        waiting: list[np.ndarray] = []
        for start in starts.tolist():
            waiting.append(np.arange(start, min(start + size, self.count)))
            filled += len(waiting[-1])
            if filled >= self.buffer:
                yield from rng.permutation(np.concatenate(waiting)).tolist()
                waiting, filled = [], 0
        if waiting:
            yield from rng.permutation(np.concatenate(waiting)).tolist()
