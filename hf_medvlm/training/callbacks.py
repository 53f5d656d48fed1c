"""Callbacks of every run."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EpochOfTheRows(TrainerCallback):
    """Tells the data set which epoch it is drawn in, on which the augmentation depends.

    accelerate does so too, but neither in several processes nor in the epoch in whose middle a resumed run begins.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["train_dataloader"].dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class Throughput(TrainerCallback):
    """Counts studies a second of training, data loading included, evaluation and saving left out."""

    def __init__(self) -> None:
        self.seconds, self.studies, self.since = 0.0, 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        self.studies += args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.since = time.perf_counter()

    on_save = on_evaluate

    def images_per_second(self) -> float:
        """Studies a second over the whole run so far; 0 before the first step."""
        return self.studies / self.seconds if self.seconds else 0.0


def peak_memory_mb() -> float:
    """Peak memory of this process in MiB: the accelerator's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
