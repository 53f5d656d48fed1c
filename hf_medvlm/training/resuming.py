"""`Resumable`: the Hugging Face `Trainer`, whose runs may be stopped anywhere and end as if they had not been.

1. A checkpoint gets its manifest last, and older ones go only when the new one is whole.
2. A run whose last checkpoint has all its steps trains no further one (the Trainer looks at `max_steps` only after a
   step), and one that had stopped early stays stopped.
3. The loss that was summed up since the last log is kept, so that the history of losses is the same too.
4. A signal ends a run after the step it came in, with a checkpoint (`interrupt.py`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_medvlm.data.disk import naming_what_is_written
from hf_medvlm.data.files import write_json
from hf_medvlm.training.checkpoints import (
    last_checkpoint,
    remove_checkpoint,
    rotate,
    was_written_by,
    what_is_wrong,
    write_manifest,
    zero_stage,
)
from hf_medvlm.training.interrupt import StopWhenAsked, noting, stop_if_agreed
from hf_medvlm.training.universal import keeping_groups, read_universal


class Resumable(Trainer):
    """See the module's text. Subclasses sum their own loss terms up in `_terms`."""

    _terms: dict[str, Tensor]
    _terms_since: int
    _resumed_from: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StopWhenAsked())

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; a program's second trainer has the first one's DeepSpeed settings, as accelerate wants it."""
        if AcceleratorState._shared_state.get("deepspeed_plugins"):
            self.args.deepspeed_plugin = None
        super().create_accelerator_and_postprocess()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """The Trainer's.

        Raises:
            Interrupted: a signal came, and a checkpoint is saved.
        """
        with noting():
            return super().train(*args, **kwargs)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's, with a manifest written last; only then are older checkpoints deleted.

        Raises:
            OSError: the disk took no more; what was written of this checkpoint is deleted, earlier ones are whole.
        """
        args = self.args
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        if args.should_save:
            remove_checkpoint(folder)  # of a run that was stopped while it wrote, or of another course of this one
        self.accelerator.wait_for_everyone()
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            with naming_what_is_written(folder, way_on(run_folder)):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if args.should_save:
                    write_manifest(folder, self.state.global_step, args.world_size, zero_stage(args))
        except OSError:
            if args.should_save:
                remove_checkpoint(folder)
            raise
        finally:
            args.save_total_limit = limit
        if args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_folder, limit, [folder, *([Path(best)] if best else [])])
        self.accelerator.wait_for_everyone()
        stop_if_agreed()

    def _save_rng_state(self, output_dir: str) -> None:
        """The Trainer's, and with it what this process has summed up since the last log."""
        super()._save_rng_state(output_dir)
        since = {
            "loss": self._tr_loss.item(),
            "logged_at": self._globalstep_last_logged,
            "terms": {name: float(total) for name, total in self._terms.items()},
            "terms_since": self._terms_since,
        }
        write_json(Path(output_dir) / f"since_last_log_{self.args.process_index}.json", since)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's, without its pickle of the arguments: `run.json` says it all, and nothing here is unpickled.

        A checkpoint (`_internal_call`) has the weights under the names that the model has in memory: the Trainer finds
        no others when it resumes or goes back to the best one. The finished model has those of `save_pretrained`.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        renames = _internal_call and isinstance(model, PreTrainedModel)
        if renames:
            model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            if renames:
                del model.save_pretrained
        if self.args.should_save:
            (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)

    # -- going on ------------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """The Trainer's; under ZeRO a checkpoint of another number of processes is read in its universal form."""
        universal = self._in_universal_form(resume_from_checkpoint)
        if not universal:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        read_universal(self.accelerator, None, True)
        with keeping_groups():
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        read_universal(self.accelerator, self.model_wrapped, False)
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        assert optimizer is not None and scheduler is not None
        # the rates as they were saved; the groups have those of a new run
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return prepared

    def _load_best_model(self) -> None:
        """The Trainer's; see `_prepare_for_training`."""
        universal = self._in_universal_form(self.state.best_model_checkpoint)
        if universal:
            read_universal(self.accelerator, self.model_wrapped, True)
        super()._load_best_model()

    def _in_universal_form(self, checkpoint: str | None) -> bool:
        """Whether a checkpoint is one of another number of ZeRO processes; `checkpoint_to_resume` refused others."""
        return bool(checkpoint and self.is_deepspeed_enabled and not was_written_by(checkpoint, self.args.world_size))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The Trainer's; the best checkpoint is found in a folder that has moved, early stopping goes on counting."""
        begun = super()._init_training_state(*args, **kwargs)
        self._resumed_from = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if not self._resumed_from:
            return begun
        state, checkpoint = self.state, Path(self._resumed_from)
        # as it was written: the Trainer has forgotten a path that does not lead anywhere from here
        best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if best is not None:
            here = checkpoint.parent / Path(best).name
            reason = what_is_wrong(here)
            state.best_model_checkpoint = None if reason else str(here)
            if reason:
                # It was deleted for a better one that came later, which is damaged or deleted now and will come again.
                if self.is_world_process_zero():
                    score = f"{self.args.metric_for_best_model} {state.best_metric:.4g}"
                    print(
                        f"{here.name}, the best so far ({score}), is gone: the best of what follows counts", flush=True
                    )
                state.best_metric = state.best_global_step = None
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callbacks: Any = state.stateful_callbacks or {}
                kept = callbacks.get(type(callback).__name__, {})
                kept = kept[0] if isinstance(kept, list) else kept
                callback.early_stopping_patience_counter = kept.get("attributes", {}).get(
                    "early_stopping_patience_counter", 0
                )
        if self.has_ended() and self.is_world_process_zero():
            print(f"{checkpoint.name} is the end of the training; only the evaluation is left", flush=True)
        return begun

    def has_ended(self) -> bool:
        """Whether no further step is to be trained: all are, or early stopping has had enough."""
        patience = [
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]
        return self.state.global_step >= self.state.max_steps or any(patience)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, unless the checkpoint that the run goes on from was its last."""
        if self._resumed_from:
            checkpoint, self._resumed_from = Path(self._resumed_from), None
            if self.has_ended():
                self.control.should_training_stop = True
                return
            self._restore_sums(checkpoint / f"since_last_log_{self.args.process_index}.json")
        super()._run_epoch(*args, **kwargs)

    def _restore_sums(self, path: Path) -> None:
        """Undo the Trainer's new beginning of what is summed up between two logs; nothing where it was not kept."""
        if not path.is_file():  # written by fewer processes
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
        self._tr_loss = self._tr_loss + kept["loss"]
        self._total_loss_scalar -= kept["loss"]  # `train_loss` is the mean over the steps from here on
        self._globalstep_last_logged = kept["logged_at"]
        self._terms = {name: torch.tensor(total, device=self.args.device) for name, total in kept["terms"].items()}
        self._terms_since = kept["terms_since"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, but for the summary of a training in which no step was left to be trained."""
        if "train_loss" not in logs or self.state.global_step > self._initial_global_step:
            super().log(logs, start_time)


def way_on(run_folder: Path) -> str:
    """What to do when a checkpoint could not be written."""
    whole = last_checkpoint(run_folder)
    if whole is None:
        return "; there is no earlier checkpoint. Free some space, or name a roomier --output_dir, and start again"
    return (
        f"; {Path(whole).name} is whole. Free some space, then go on from it with --output_dir {run_folder} "
        "--resume_from_checkpoint True"
    )
