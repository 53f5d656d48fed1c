"""Ctrl-C and SIGTERM: the step is finished, a checkpoint saved, and it is said how to go on.

`listening` is on while a recipe runs. While a model trains, the first signal is only noted: `StopWhenAsked` looks at it
after each step, in all processes of a run at once, and the trainer raises `Interrupted` when its checkpoint is whole.
At any other time, and at the second signal, `Interrupted` is raised at once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_medvlm.data.locks import held, release_all
from hf_medvlm.data.secrets import masked_command
from hf_medvlm.training.checkpoints import last_checkpoint
from hf_medvlm.training.deepspeed import RANKS, is_main_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
APART = 3.0  # seconds: what a launcher passes on of one Ctrl-C is no second one


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class _Noted:
    """What has come so far."""

    on = False  # whether anybody listens
    training = False  # whether somebody will look after the next step
    number, since = 0, 0.0  # of the first signal
    agreed = 0  # the same in all processes
    pid = 0  # of the process that listens; its workers have a copy of all this
    at_once = 0  # the signal that ended the workers before the run
    started: tuple[str, ...] = ()  # the command line, asked for while the launcher is there


@contextmanager
def listening() -> Iterator[None]:
    """Catch SIGINT and SIGTERM while the block runs; in the main thread alone, as Python wants it."""
    try:
        before = {number: signal.signal(number, _note) for number in SIGNALS}
    except ValueError:  # another thread: whoever runs this there has handlers of its own
        yield
        return
    _Noted.on, _Noted.pid, _Noted.started = True, os.getpid(), tuple(command_line())
    _end_with_launcher()
    try:
        yield
    finally:
        _Noted.on, _Noted.number, _Noted.agreed, _Noted.at_once = False, 0, 0, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_the_group() -> None:
    """A worker process of its own group: Ctrl-C and launchers signal whole groups, and the last step needs its workers.

    They end with the main process all the same.
    """
    if _Noted.on and os.getppid() == _Noted.pid:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_the_group)


def _note(number: int, frame: FrameType | None) -> None:
    """The handler."""
    if os.getpid() != _Noted.pid:  # a worker has it too
        os._exit(128 + number)
    now = time.monotonic()
    if not _Noted.number:
        _Noted.number, _Noted.since = number, now
        if _Noted.training:
            name = signal.Signals(number).name
            _tell(f"{name}: this step is finished and a checkpoint saved; {name} once more stops at once")
            return
    elif number != _Noted.number or now - _Noted.since < APART:
        return
    _Noted.at_once = number
    for child in multiprocessing.active_children():
        child.terminate()  # pools would first do all their work
    raise Interrupted(number)


def _tell(line: str) -> None:
    """Print in a signal handler, where `print` may find itself half-way through another."""
    if is_main_process():
        os.write(2, f"\n{line}\n".encode())


def stopped_at_once() -> int:
    """The number of the signal for which the workers were ended, whatever broke then; 0 where there was none."""
    return _Noted.at_once


def stop_if_agreed() -> None:
    """Raise `Interrupted` where all processes have agreed to stop; called when a checkpoint is whole."""
    if _Noted.agreed:
        raise Interrupted(_Noted.agreed)


@contextmanager
def noting() -> Iterator[None]:
    """A training: from here on a signal is looked at after each step; one that comes after the last, at the end."""
    _Noted.training = True
    try:
        yield
    finally:
        _Noted.training = False
    if _Noted.on and _Noted.number:
        raise Interrupted(_Noted.number)


class StopWhenAsked(TrainerCallback):
    """Asks for a checkpoint after the step in which a signal came to any process of the run."""

    group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # a group of the CPU's own: asking must not make a GPU wait
        if _Noted.on and args.world_size > 1 and self.group is None:
            self.group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        by_epoch = "epoch" in (args.eval_strategy, args.save_strategy)
        if not (by_epoch and float(state.epoch or 0).is_integer()):  # else the epoch's evaluation comes first
            self._ask(args, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ask(args, control)

    def _ask(self, args: TrainingArguments, control: TrainerControl) -> None:
        if not _Noted.on:
            return
        number = _Noted.number
        if args.world_size > 1:
            everywhere = torch.tensor([number])
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX, group=self.group)
            number = int(everywhere)
        if number:
            _Noted.agreed = number
            control.should_save = True


# -- the end of an interrupted run -------------------------------------------------------------------------------------


def leave(number: int) -> None:
    """Say how to go on, give back what is held, leave no worker behind, and exit with 128 + `number`.

    Raises:
        SystemExit: always, in a run of one process; several are ended without the farewells that wait for one another.
    """
    if is_main_process():
        print(f"\n{how_to_go_on(number)}", file=sys.stderr, flush=True)
    release_all()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for a worker that is ended
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(10)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)
    sys.exit(128 + number)


def how_to_go_on(number: int) -> str:
    """What was saved, and the exact command that goes on with it."""
    name = signal.Signals(number).name
    for folder in held():
        checkpoint = last_checkpoint(folder)
        if checkpoint is not None:
            here = os.path.relpath(folder)
            command = restart_command(here)
            return f"Interrupted by {name}. {os.path.relpath(checkpoint)} is whole; go on from it with\n  {command}"
    return f"Interrupted by {name}, before there was a checkpoint; start again with\n  {restart_command(None)}"


def restart_command(folder: str | None) -> str:
    """The command line of this run, its launcher included, resuming from `folder` where that is given."""
    words = [*_Noted.started]
    if folder is not None:
        words = without(words, ("resume_from_checkpoint", "overwrite_output_dir", "output_dir"))
        words += ["--output_dir", folder, "--resume_from_checkpoint", "True"]
    return masked_command([*map(shlex.quote, words)])


def command_line() -> list[str]:
    """How this process was started, by the outermost launcher where there is one."""
    words = [word for word in sys.orig_argv if not word.startswith("--local_rank=")]  # DeepSpeed's launcher writes it
    options = len(sys.argv) - 1 - (len(sys.orig_argv) - len(words))
    return launcher(words[max(len(words) - max(options, 0) - 1, 0) :]) or words


def launcher(tail: Sequence[str]) -> list[str] | None:
    """The command line of the outermost launcher above this process, which ends on the same words; None without one."""
    import psutil

    command = None
    try:
        for process in psutil.Process().parents():
            words = process.cmdline()
            if len(words) <= len(tail) or words[-len(tail) :] != list(tail):
                break
            command = words
    except psutil.Error:
        return command
    return command


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without the options `--name` and their values."""
    left: list[str] = []
    skipping = False
    for word in words:
        if word.startswith("--"):
            skipping = word[2:].split("=")[0].replace("-", "_") in names
        if not skipping:
            left.append(word)
        skipping = skipping and word.startswith("--") and "=" not in word  # the value that follows
    return left


def _end_with_launcher() -> None:
    """Be told when `accelerate launch` ends: it starts one process and does not pass a signal on to it.

    torchrun and DeepSpeed's launcher do. Without a launcher the parent is a shell, which may end.
    """
    if not sys.platform.startswith("linux") or set(RANKS) & set(os.environ):
        return
    try:
        above = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if any(Path(os.fsdecode(word)).name in ("accelerate", "accelerate-launch") for word in above[:3]) or (
        b"accelerate.commands.launch" in above
    ):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
