"""DeepSpeed files: read, checked by arithmetic before anything starts, completed where a batch size is left open.

DeepSpeed itself is imported by `join_processes` alone; torch has been imported by then.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_medvlm.data.files import load_json
from hf_medvlm.errors import clipped
from hf_medvlm.shipped import find_shipped
from hf_medvlm.training.launch_settings import check_deepspeed_values

if TYPE_CHECKING:
    from transformers import TrainingArguments

BATCH, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
OPTIONS = {MICRO: "--per_device_train_batch_size", STEPS: "--gradient_accumulation_steps"}


def read_deepspeed(config: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The settings of a DeepSpeed file; a dictionary comes back as a copy. Batch sizes it does not name become "auto".

    A name like `zero2` means the shipped file.

    Raises:
        ValueError: no such file, broken JSON (with its place), or no JSON object.
    """
    if isinstance(config, dict):
        settings = dict(config)
    else:
        try:
            settings = load_json(find_shipped(config, "ds_configs", ".json"), dict)
        except ValueError as error:
            raise ValueError(f"--deepspeed {error}") from error
    return {MICRO: "auto", STEPS: "auto"} | settings


def check_deepspeed(config: str | Path | dict[str, Any], per_device: int, accumulation: int, processes: int) -> None:
    """Refuse a file whose batch sizes cannot be.

    Args:
        per_device, accumulation: what TrainingArguments say.
        processes: how many take part.

    Raises:
        ValueError: the file contradicts TrainingArguments or itself, with the arithmetic written out; or a value that
            its name cannot have.
    """
    settings = read_deepspeed(config)
    name = "the DeepSpeed settings" if isinstance(config, dict) else f"--deepspeed {config}"
    check_deepspeed_values(settings, name)
    for key, ours in ((MICRO, per_device), (STEPS, accumulation)):
        if settings[key] not in ("auto", ours):
            raise ValueError(
                f"{name}: {key} is {clipped(settings[key])}, but {OPTIONS[key]} is {ours}; "
                'write "auto", or make them agree'
            )
    total = per_device * accumulation * processes
    stated = settings.get(BATCH, "auto")
    if stated not in ("auto", total):
        remedy = f'write {total} or "auto"'
        if isinstance(stated, int) and stated % (per_device * accumulation) == 0:
            remedy += f", or start {stated // (per_device * accumulation)} process(es)"
        if isinstance(stated, int) and stated % (per_device * processes) == 0:
            remedy += f", or --gradient_accumulation_steps {stated // (per_device * processes)}"
        raise ValueError(
            f"{name}: {BATCH} is {clipped(stated)}, but {per_device} a device x {accumulation} accumulated x "
            f"{processes} process(es) = {total}; {remedy}"
        )


BUILD_BEGINS = 60.0  # seconds between a lock and the compiler that works behind it
BETWEEN_LOOKS = 2.0


def check_builds() -> None:
    """Find what a killed launch left of a build of DeepSpeed's parts in C++, for which a later one waits without end.

    The lock does not say whose it is. Somebody builds where the lock is new, or a process works in its folder.

    Raises:
        ValueError: a lock that nobody is behind; the message names the file to delete.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    python = f"py{sys.version_info.major}{sys.version_info.minor}_*"
    folder = Path(root) if root else Path("~/.cache/torch_extensions").expanduser()
    left = _idle_locks(folder.glob("*/lock" if root else f"{python}/*/lock"))
    if left:
        time.sleep(BETWEEN_LOOKS)  # a build may just have ended
        left = _idle_locks(left)
    for path in left:
        since = time.strftime("%d %B, %H:%M", time.localtime(path.stat().st_mtime))
        raise ValueError(
            f"--deepspeed: {path} is left of a build of {path.parent.name} that began on {since} and was stopped: no "
            "process here works in that folder, and DeepSpeed would wait for it without end. Unless another machine is "
            f"building there, delete it: rm {path}"
        )


def _idle_locks(locks: Iterable[Path]) -> list[Path]:
    """Those that are there, not new, and in whose folder no process of this machine works."""
    import psutil

    old = [path for path in locks if path.exists() and time.time() - path.stat().st_mtime > BUILD_BEGINS]
    at_work = set()
    for process in psutil.process_iter() if old else ():
        try:
            at_work.add(Path(process.cwd()))
        except (psutil.Error, OSError):  # another user's, or just ended
            continue
    return [path for path in old if path.parent.resolve() not in at_work]


@contextmanager
def unsharded(training: TrainingArguments) -> Iterator[None]:
    """Make a model whole although ZeRO-3 is on: new random weights are then the same with it and without."""
    if training.deepspeed is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(training.hf_deepspeed_config)


RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
"""Where launchers say which of the processes this one is."""


def is_main_process() -> bool:
    """Whether this process is the first of its launch, asked before the processes know one another."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def stand_alone() -> None:
    """Where no launcher said who we are (`python recipe.py --deepspeed ...`), be a launch of one process."""
    if not set(RANKS) & set(os.environ):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def join_processes() -> None:
    """Let DeepSpeed join the process group that TrainingArguments has opened, before a model is made.

    On a CPU, accelerate opens the group without DeepSpeed, which then believes it is alone: ZeRO-3, which shards while
    the model is made, would refuse a file with a `train_batch_size`. And DeepSpeed adds gradients up in shared memory
    that it names after the port and never removes: 69 MB a process stay behind, and a later process that opens them
    before its neighbour has made them anew waits for ever. So everyone removes their own, before and after.
    """
    import deepspeed

    if deepspeed.comm.is_initialized():
        return
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed()
        return
    address, port, rank = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), torch.distributed.get_rank()
    buffer = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}")
    buffer.unlink(missing_ok=True)
    torch.distributed.barrier()
    deepspeed.init_distributed()
    torch.distributed.barrier()  # everyone has opened everyone's
    buffer.unlink(missing_ok=True)
