"""How many workers load a run's data, and whether they or the model will wait: measured in a dry run."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from hf_medvlm.collators.pixels import Unfinished
from hf_medvlm.data.files import available_cores
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks

if TYPE_CHECKING:
    from hf_medvlm.training.trainer import MedVLMTrainer

FEW_STUDIES = 2000
"""Of fewer, workers would take longer to start than they save."""
MOST_WORKERS = 16
AHEAD = 4
"""Batches that a worker prepares ahead."""
SECONDS = 1.5
"""Of loading, and of the model's steps, that are measured."""


def choose_workers(args: MedVLMArguments, studies: int) -> None:
    """Set the loader's options where `--dataloader_num_workers` was left out: the cores of this machine are shared by
    its processes, and each keeps one for itself. Workers live as long as the run."""
    if args.workers_asked:
        return
    processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    workers = min(available_cores() // processes - 1, MOST_WORKERS) if studies >= FEW_STUDIES else 0
    args.dataloader_num_workers = max(workers, 0)
    args.dataloader_persistent_workers = workers > 0
    if workers > 0 and args.dataloader_prefetch_factor is None:
        args.dataloader_prefetch_factor = AHEAD


def check_loading(checks: Checks, trainer: MedVLMTrainer) -> None:
    """Measure images a second of the loader and of the model's forward and backward passes, and say which will wait."""
    args, rows = trainer.args, trainer.train_dataset
    if rows is None or not len(rows):
        return
    loaded = loader_rate(trainer)
    speed = f"{loaded:.1f} studies/s from {args.dataloader_num_workers} worker(s) of each process"
    if args.deepspeed or any(parameter.is_meta for parameter in trainer.model.parameters()):
        checks.add(OK, "loader", f"{speed}; the model's step is not measured, since the model is not whole here")
        return
    try:
        taken = model_rate(trainer)
    except torch.OutOfMemoryError as error:
        size = args.per_device_train_batch_size
        way_out = "lower --per_device_train_batch_size, or add --gradient_checkpointing"
        checks.add(STOP, "step", f"a step of {size} studies does not fit into the device's memory; {way_out} ({error})")
        return
    speed += f"; the model takes {taken:.1f} studies/s on {args.device}"
    if loaded >= taken:
        checks.add(OK, "loader", f"{speed}: the loader will wait for the model")
        return
    ways = "--image_cache" if not args.image_cache else "more cores"
    if (args.dataloader_num_workers or 0) < available_cores() - 1:
        ways += " or more --dataloader_num_workers"
    state = OK if args.device.type == "cpu" else WARNING
    checks.add(state, "loader", f"{speed}: the model will wait {1 - loaded / taken:.0%} of the time; {ways} would help")


def loader_rate(trainer: MedVLMTrainer, seconds: float = SECONDS) -> float:
    """Studies a second of the training loader, without its start."""
    args, collate = trainer.args, trainer.data_collator
    workers, size = args.dataloader_num_workers or 0, args.per_device_train_batch_size
    loader = DataLoader(
        trainer.train_dataset,
        batch_size=min(size, len(trainer.train_dataset)),
        collate_fn=Unfinished(collate) if trainer.finishes_pixels() else collate,
        num_workers=workers,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        drop_last=True,
    )
    batches, count = iter(loader), 0
    begin = time.perf_counter()
    if workers and len(loader) > workers + 1:
        next(batches)  # the workers have started
        begin = time.perf_counter()
    for _ in batches:
        count += loader.batch_size or 1
        if time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


def model_rate(trainer: MedVLMTrainer, seconds: float = SECONDS) -> float:
    """Studies a second of forward and backward, without the optimizer: first of one study, then of a batch where that
    will be quick enough. Changes no weight."""
    rows, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    model = trainer.model.to(trainer.args.device).train()
    rate = 0.0
    for count in (2, min(size, len(rows))):
        batch = trainer.data_collator([rows[index] for index in range(min(count, len(rows)))])
        begin = time.perf_counter()
        with trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs(batch)
            loss = trainer.objective(model, inputs).loss if trainer.objective else model(**inputs).loss
        loss.backward()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        rate = min(count, len(rows)) / (time.perf_counter() - begin)
        model.zero_grad()
        if size / rate > 2 * seconds:
            break
    return rate
