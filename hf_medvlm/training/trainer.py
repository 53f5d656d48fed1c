"""`MedVLMTrainer`: the Hugging Face `Trainer`, with the four things put right that its users trip over here.

1. A loss that is a mean over tokens or labelled entries is a mean over the *global* batch: loss and gradient are the
   same whatever the number of accumulated micro-batches and of processes. The objective (`objective.py`) counts, the
   trainer sums the counts over micro-batches and processes, and the objective divides by the totals. The stock Trainer
   multiplies the loss of transformers' own BLIP by the accumulation steps and by the processes.
2. Every study is evaluated exactly once, in any number of processes and at any batch size (`evaluation.py`).
3. Named loss terms are logged.
4. Nothing is pushed from here: `hub.py` decides what may leave.

What makes a run that was stopped end as if it had not been is in `resuming.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers.trainer_utils import SaveStrategy

from hf_medvlm.collators.augmentation import finish_batch
from hf_medvlm.collators.pixels import Unfinished
from hf_medvlm.data.images.members import shard_of
from hf_medvlm.data.rows import Row, StudyRows
from hf_medvlm.data.sources.base import nearest
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Evaluation, Scores, to_numpy, without_nan
from hf_medvlm.models.attention import take_kernels_of_any_shape
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.callbacks import EpochOfTheRows
from hf_medvlm.training.fsdp import gathered, shard_model, shard_on_cpu
from hf_medvlm.training.objective import Objective
from hf_medvlm.training.order import BUFFER, BufferedSampler
from hf_medvlm.training.parts import CONNECTOR, VISION, split_by_rate
from hf_medvlm.training.resuming import Resumable

logger = logging.getLogger(__name__)


class MedVLMTrainer(Resumable):
    """Trains and evaluates any family.

    Args:
        objective: what the model is trained for; without one, its own `forward(labels=...)` gives the loss, as in the
            stock Trainer.
        evaluation: how the family is scored; needed for `evaluate` and `scores`. Give it the same objective.
        Everything else is the `Trainer`'s; `data_collator` is the training collator, `train_dataset` and `eval_dataset`
        are `StudyRows`.
    """

    args: MedVLMArguments
    objective: Objective | None
    evaluation: Evaluation | None
    # a family's own classes, of which the Trainer knows none: any model, its processor, `StudyRows`, a collator of rows
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    optimizer: Any

    def __init__(
        self, *args: Any, objective: Objective | None = None, evaluation: Evaluation | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        take_kernels_of_any_shape(self.args.device)
        self.objective = objective
        self.evaluation = evaluation
        if objective is not None:
            # The Trainer divides the loss by the accumulation steps unless there are counts; here the objective counts.
            self.model_accepts_loss_kwargs = True
        self._terms: dict[str, Tensor] = {}
        self._terms_since = 0
        self._undefined: set[str] = set()  # metrics of the last evaluation that came out as NaN
        self.add_callback(EpochOfTheRows())

    # -- sharding ------------------------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; FSDP2 works on CPUs too."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; under FSDP2 the model is sharded by its layers before the optimizer is made."""
        if self.is_fsdp_enabled:
            shard_model(self.model, self.accelerator.state.fsdp_plugin)
        return super()._prepare_for_training(*args, **kwargs)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """The micro-batches of one optimizer step, and the counts of the global batch that the loss is a mean over."""
        if self.objective is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return batches, self.denominators(batches, device) or None

    def denominators(self, batches: Sequence[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """The objective's counts, name -> (), summed over `batches` and over all processes."""
        assert self.objective is not None
        totals: dict[str, Tensor] = {}
        for batch in batches:
            for name, count in self.objective.count(batch).items():
                totals[name] = totals[name] + count.to(device) if name in totals else count.to(device)
        return {name: self.accelerator.reduce(count, "sum") for name, count in totals.items()}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one micro-batch, such that the sum over the step is the loss of the global batch."""
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        result = self.objective(model, inputs, num_items_in_batch)
        # The processes' gradients are averaged, and so is the logged loss; the denominators are global already.
        processes = self.accelerator.num_processes if num_items_in_batch else 1
        if len(result.loss_terms) > 1:  # a single term is the loss itself
            self.note_terms(
                result.loss_terms, processes if num_items_in_batch else 1 / self.current_gradient_accumulation_steps
            )
        loss = result.loss * processes
        return (loss, result.outputs) if return_outputs else loss

    def note_terms(self, terms: dict[str, Tensor], scale: float) -> None:
        """Keep one micro-batch's `terms`, () each, times `scale`, until the next log."""
        if not self._terms:
            self._terms_since = self.state.global_step
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, 0) + term.detach() * scale

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the named terms of the loss, averaged over the steps since the last log, as `loss/<name>`."""
        if "loss" in logs and self._terms:
            steps = max(self.state.global_step - self._terms_since, 1)
            for name, total in self._terms.items():
                logs[f"loss/{name}"] = self.accelerator.reduce(total, "mean").item() / steps
            self._terms = {}
        super().log(logs, start_time)

    # -- learning rates ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's groups (with and without weight decay), split where parts have rates of their own."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        return self.split_rates(optimizer, model) if made else optimizer

    def split_rates(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """`--vision_lr` and `--connector_lr`; nothing changes where neither is given."""
        rates = {part: getattr(self.args, f"{part}_lr", None) for part in (VISION, CONNECTOR)}
        target: Any = self.model if model is None else model
        return split_by_rate(optimizer, target, rates)

    # -- data ----------------------------------------------------------------------------------------------------------

    def finishes_pixels(self) -> bool:
        """Whether pictures are varied and normalised here, in batches, and not by the workers: on any but a CPU."""
        return self.args.device.type != "cpu"

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The Trainer's, which moves the batch to the device; pictures of 8 bits become pixel values there."""
        return finish_batch(super()._prepare_inputs(inputs))

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's; where the studies do not fill one global batch, the last small batch is kept."""
        args = self.args
        if len(self.train_dataset) < self._train_batch_size * args.world_size:
            args.dataloader_drop_last = False
        collate = self.data_collator
        if self.finishes_pixels():
            self.data_collator = Unfinished(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """The Trainer's; samples of shards are mixed within `--shuffle_buffer`, in the order in which they are read."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        buffer = self.args.shuffle_buffer
        if buffer is None and len(rows):
            image = rows[0].study.frontal
            buffer = BUFFER if image and shard_of(image.path) else None
        if buffer is None:
            return super()._get_train_sampler(train_dataset)
        return BufferedSampler(len(rows), buffer, self.args.seed)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score a split (the validation split by default) and log `<prefix>_<metric>`; NaN metrics are left out."""
        start = time.perf_counter()
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        scores = self.scores(rows)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in without_nan(scores.metrics).items() if v is not None}
        self._undefined = {f"{metric_key_prefix}_{k}" for k in scores.metrics} - set(metrics)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best so far; one whose headline score is undefined is not. Where no evaluation
        has had it yet, another score takes its place.

        Raises:
            ValueError: the evaluation gives no score of the name of `--metric_for_best_model`.
        """
        name = self.args.metric_for_best_model
        name = name if name is None or name.startswith("eval_") else f"eval_{name}"
        if name is None or name in metrics:
            return super()._determine_best_metric(metrics, trial)
        if name in self._undefined:
            if not (self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST):
                return False  # nothing is chosen by it
            what = "this checkpoint is not the best"
            if self.state.best_metric is None:
                what = self.choose_another_headline(name.removeprefix("eval_"), self.eval_dataset.studies, metrics)
            logger.warning("%s is undefined on the validation split; %s", name, what)
            other = f"eval_{self.args.metric_for_best_model}"
            return other in metrics and super()._determine_best_metric(metrics, trial)
        raise ValueError(
            f"--metric_for_best_model {self.args.metric_for_best_model}: there is no such score"
            f"{nearest(name, metrics)}; there are {', '.join(key.removeprefix('eval_') for key in metrics)}"
        )

    def choose_another_headline(
        self, asked: str, studies: Sequence[Study], metrics: Mapping[str, float] | None = None
    ) -> str:
        """Let the best checkpoint be chosen by another score than `asked`, in `args`, or let the last one be kept where
        there is none; what was done, as a sentence.

        Args:
            studies: of the validation split.
            metrics: what an evaluation of it gave; None before the first one.
        """
        evaluation = self.evaluation
        for name, greater in evaluation.instead() if evaluation else ():
            known = metrics is None or f"eval_{name}" in metrics
            if evaluation and name != asked and known and evaluation.undefined(name, studies) is None:
                self.args.metric_for_best_model, self.args.greater_is_better = name, greater
                return f"the best checkpoint is chosen by {name} instead"
        self.args.load_best_model_at_end = False
        if self.args.save_strategy == SaveStrategy.BEST:
            self.args.save_strategy = SaveStrategy.STEPS
        return "the last weights are kept"

    def scores(self, rows: StudyRows) -> Scores:
        """Run the family's evaluation over `rows`, in all processes; every process gets the scores.

        Raises:
            ValueError: the split is empty, or the trainer has no evaluation.
        """
        if self.evaluation is None:
            raise ValueError("this trainer has no evaluation; pass evaluation= to MedVLMTrainer")
        if not len(rows):
            raise ValueError("there is no study to evaluate on; look at the splits that --dry_run prints")
        outputs = self.predict_rows(rows)
        return self.evaluation.score(outputs, rows.studies)

    @torch.no_grad()
    def predict_rows(self, rows: StudyRows) -> dict[str, list[np.ndarray]]:
        """What `Evaluation.predict` gives for each study, in the order of the data set, each study once.

        Batches are dealt to the processes in turn. Every process runs the same number of them (ZeRO-3 hangs otherwise):
        where one is short it runs a batch again, and what came twice is counted once.
        """
        size, rank, world = (
            self.args.per_device_eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        batches = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
        rounds = -(-len(batches) // world)
        mine = [batches[min(i * world + rank, len(batches) - 1)] for i in range(rounds)]
        dataset: Any = rows  # a sequence of rows; `data` brings no torch, and so none of its classes
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=mine,
            collate_fn=Unfinished(self._evaluation_batch) if self.finishes_pixels() else self._evaluation_batch,
            num_workers=int(self.args.dataloader_num_workers or 0),
        )
        model, evaluation = self.evaluation_model(), self.evaluation
        assert evaluation is not None
        seen: dict[int, dict[str, np.ndarray]] = {}
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        with gathered(model):
            for indices, batch in tqdm(loader, desc="Evaluating", leave=False, disable=hidden):
                with self.accelerator.autocast():
                    outputs = evaluation.predict(model, self._prepare_inputs(batch))
                arrays = {name: to_numpy(tensor) for name, tensor in outputs.items()}
                for place, index in enumerate(indices):
                    seen[index] = {name: array[place] for name, array in arrays.items()}
        if world > 1:
            seen = {index: values for part in gather_object([seen]) for index, values in part.items()}
        missing = set(range(len(rows))) - set(seen)
        if missing:
            raise RuntimeError(f"{len(missing)} studies were not evaluated, the first is number {min(missing)}")
        return {name: [seen[index][name] for index in range(len(rows))] for name in seen[0]}

    def _evaluation_batch(self, rows: list[Row]) -> tuple[list[int], dict[str, Any]]:
        assert self.evaluation is not None
        return [row.index for row in rows], self.evaluation.collate(rows)

    def evaluation_model(self) -> nn.Module:
        """The model in evaluation mode; under ZeRO-3 its parameters stay sharded and are gathered module by module."""
        if self.is_deepspeed_enabled and self.deepspeed is None:  # evaluation without training first
            from transformers.integrations.deepspeed import deepspeed_init

            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.deepspeed = self.accelerator.prepare(self.model)
        elif self.model_wrapped is self.model:
            self.model.to(self.args.device)
        return self.accelerator.unwrap_model(self.model_wrapped).eval()
