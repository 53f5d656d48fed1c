"""`ContrastiveTrainer`: one contrastive loss over the global batch, however many micro-batches and processes it is
cut into.

Accumulating the losses of micro-batches would show each pair the negatives of its own micro-batch alone. Here the
rows that the loss is a function of are cached first, without gradient, over all micro-batches and processes; the
gradient of the one loss with respect to these rows is taken; then each micro-batch is run again and its rows carry
their share of that gradient into the weights. The result is the gradient of one large batch in the memory of a
micro-batch (GradCache, Gao et al. 2021, arXiv 2101.06983).

`ContrastiveObjective` says what a model needs to take part. Trailing dimensions may differ between micro-batches and
processes; they are padded with zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.base import Scores
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.models.contrast import check_contrast, gather_rows
from hf_medvlm.training.arguments import MedVLMArguments, option
from hf_medvlm.training.objective import ContrastiveObjective
from hf_medvlm.training.schedule import TellStep, parameter_groups, staged_schedule
from hf_medvlm.training.trainer import MedVLMTrainer


@dataclass
class ContrastiveArguments(MedVLMArguments):
    """`MedVLMArguments` with the size of the contrastive batch."""

    contrastive_batch_size: int | None = option(
        None, "pairs that one loss tells apart, over all micro-batches and processes; sets the accumulation steps"
    )

    frozen_epochs: float = option(0.0, "train heads and projections alone for so many epochs, then everything")
    frozen_learning_rate: float = option(1e-4, "learning rate of heads and projections during --frozen_epochs")
    layer_decay: float = option(1.0, "factor on the learning rate from each block of the vision tower to the one below")

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1 or self.frozen_epochs < 0:
            raise ValueError(
                f"--layer_decay lies above 0 and at most 1, --frozen_epochs at 0 or above; got {self.layer_decay} and "
                f"{self.frozen_epochs}"
            )
        if self.frozen_epochs and self.lr_scheduler_type != "cosine":
            raise ValueError("--frozen_epochs ends in a cosine: give --lr_scheduler_type cosine, or leave it out")
        if self.contrastive_batch_size is not None:
            at_once = self.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
            steps, rest = divmod(self.contrastive_batch_size, at_once)
            if rest or not steps:
                raise ValueError(
                    f"--contrastive_batch_size {self.contrastive_batch_size} is no multiple of the {at_once} pairs "
                    "that all processes take at once (--per_device_train_batch_size x processes); the nearest are "
                    f"{max(steps, 1) * at_once} and {(steps + 1) * at_once}"
                )
            self.gradient_accumulation_steps = steps
        super().__post_init__()


class ContrastiveTrainer(MedVLMTrainer):
    """Trains a dual encoder of any kind on contrastive batches.

    Args:
        As `MedVLMTrainer` (`ContrastiveArguments` add stages and layer-wise decay); `data_collator.text(study)` is
        the text of a pair.

    Raises:
        ValueError: the contrastive batch (or an epoch's last one) would hold a single pair, or all texts are the same.
    """

    objective: ContrastiveObjective
    evaluation: RetrievalEvaluation | None

    def __init__(self, *args: Any, objective: ContrastiveObjective | None = None, **kwargs: Any) -> None:
        super().__init__(*args, objective=objective or ContrastiveObjective(), **kwargs)
        self._micro_batches: list[dict[str, Tensor]] = []
        self._cache: _Cache | None = None
        self._scale: Tensor | None = None
        if self.train_dataset is not None:
            self._check_pairs(self.train_dataset)
        self.add_callback(TellStep())

    def _check_pairs(self, rows: StudyRows) -> None:
        """Refuse, before a batch is read, data whose batches would hold one pair or one text alone."""
        at_once, steps = self.args.train_batch_size * self.args.world_size, self.args.gradient_accumulation_steps
        last = len(rows) // at_once % steps * at_once  # pairs of an epoch's last step, where that is a short one
        check_contrast(torch.arange(min(at_once * steps, len(rows), last or len(rows))))
        first = self.data_collator.text(rows[0].study)
        if all(self.data_collator.text(rows[i].study) == first for i in range(1, len(rows))):
            check_contrast(torch.zeros(len(rows)))

    # -- learning rates ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with groups by depth where the arguments ask for stages or layer-wise decay."""
        args = self.args
        if self.optimizer is None and isinstance(args, ContrastiveArguments):
            if args.frozen_epochs or args.layer_decay < 1:
                target: Any = self.model if model is None else model
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, target)
                groups = parameter_groups(target, args.learning_rate, args.layer_decay, args.weight_decay)
                self.optimizer = self.split_rates(optimizer_class(groups, **options), target)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The Trainer's, or the two phases of `schedule.py`."""
        args = self.args
        if self.lr_scheduler is None and isinstance(args, ContrastiveArguments) and args.frozen_epochs:
            at_once = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            frozen = round(args.frozen_epochs * len(self.train_dataset) / at_once)
            self.lr_scheduler = staged_schedule(
                optimizer or self.optimizer,
                frozen_steps=min(frozen, num_training_steps),
                frozen_rate=args.frozen_learning_rate,
                warmup_steps=args.get_warmup_steps(num_training_steps),
                total_steps=num_training_steps,
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # -- one optimizer step --------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], None]:
        """The micro-batches of one optimizer step, kept in mind for its first `compute_loss`."""
        self._micro_batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._cache = None
        return self._micro_batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of the global batch; its gradient is this micro-batch's share of that loss's gradient."""
        if len(self._micro_batches) == 1:
            rows = self._rows(model, inputs)
            terms = self._terms_of(gather_rows(rows))
            loss = reduce(torch.add, terms.values())
        else:
            # not in `get_batch_samples`: after a resume the random state is restored between the two
            if self._cache is None:
                self._cache = self._fill_cache(model)
            rows, loss, terms = self._replay(model, inputs)
        # each micro-batch logs its share, and the Trainer divides the loss in the same way
        self.note_terms(terms, 1 / len(self._micro_batches))
        self._scale = rows["logit_scale"].detach()
        return (loss, rows) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the temperature to what is logged of training."""
        if "loss" in logs and self._scale is not None:
            logs["temperature"] = 1 / self._scale.item()
        super().log(logs, start_time)

    def _rows(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The representations of one micro-batch, with the identities of its pairs."""
        return self.objective.rows(model, batch)[0]

    def _terms_of(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.objective.terms(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), rows)

    @torch.no_grad()
    def _fill_cache(self, model: nn.Module) -> _Cache:
        """Run all micro-batches without gradient, and take the gradient of the loss with respect to their rows."""
        states, parts = [], []
        for batch in self._micro_batches:
            states.append(random_state(self.args.device))
            parts.append(self._rows(model, self._prepare_inputs(batch)))
        torch.clear_autocast_cache()  # holds weights that were cast without gradient
        counts = [len(part["pair_ids"]) for part in parts]
        everywhere = self.accelerator.gather(torch.tensor([sum(counts)], device=self.args.device)).tolist()
        start = sum(everywhere[: self.accelerator.process_index])
        gathered = gather_rows(stack_rows(parts))
        with torch.enable_grad():
            leaves = {n: v.requires_grad_() for n, v in gathered.items() if v.is_floating_point()}
            terms = self._terms_of(gathered)
            grads = torch.autograd.grad(reduce(torch.add, terms.values()), list(leaves.values()), allow_unused=True)
        shares = []
        for state, count in zip(states, counts, strict=True):
            shares.append((state, slice(start, start + count)))
            start += count
        known = {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
        return _Cache({name: term.detach() for name, term in terms.items()}, known, shares)

    def _replay(
        self, model: nn.Module, inputs: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Run a micro-batch again, in the random state of the first time, with its share of the cached gradient."""
        cache, steps = self._cache, len(self._micro_batches)
        assert cache is not None
        state, places = cache.shares.pop(0)
        restore_random_state(state, self.args.device)
        rows = self._rows(model, inputs)
        carried = torch.zeros((), device=self.args.device)
        for name, grad in cache.grads.items():
            row = rows[name]
            if row.dim():
                # the processes' gradients are averaged, but each row belongs to one process alone
                share = grad[places][tuple(slice(size) for size in row.shape)] * self.accelerator.num_processes
            else:
                share = grad / steps
            carried = carried + (row * share).sum()
        loss = reduce(torch.add, cache.terms.values())
        # the Trainer divides by the steps: the value becomes the loss's share, the gradient that of `carried`
        return rows, (carried - carried.detach()) * steps + loss, cache.terms

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def scores(self, rows: StudyRows) -> Scores:
        """Adds, where the evaluation wants a probe, the features of the training studies that it learns from."""
        if self.evaluation is not None and self.evaluation.probe_rows is not None:
            self.evaluation.probe_outputs = self.predict_rows(self.evaluation.probe_rows)
        return super().scores(rows)


@dataclass
class _Cache:
    """What one optimizer step keeps: the loss, its gradient by rows, and where each micro-batch stands among them."""

    terms: dict[str, Tensor]
    grads: dict[str, Tensor]
    shares: list[tuple[list[Tensor], slice]]


def stack_rows(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all micro-batches one below the other, smaller ones padded with zeros; scalars are the same in
    all.
    """
    stacked = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if first.dim():
            sizes = [max(value.shape[dim] for value in values) for dim in range(1, first.dim())]
            values = [pad_to(value, sizes) for value in values]
        stacked[name] = torch.cat(values) if first.dim() else first
    return stacked


def pad_to(rows: Tensor, sizes: list[int]) -> Tensor:
    """(N, ...) -> (N, *sizes), zeros at the ends."""
    margins = [(0, size - length) for length, size in zip(rows.shape[1:], sizes, strict=True)]
    return F.pad(rows, [edge for margin in reversed(margins) for edge in margin])


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the random numbers on the CPU and on `device`."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def restore_random_state(states: list[Tensor], device: torch.device) -> None:
    """Undo what was drawn since `random_state`."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
