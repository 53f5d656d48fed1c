"""Work that one process of each machine does while its neighbours wait: decoding a corpus, filling a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from accelerate.utils import gather_object, wait_for_everyone
from transformers import TrainingArguments

from hf_medvlm.data.files import machine_lock
from hf_medvlm.data.verification import check_images

T = TypeVar("T")


def once_a_machine(training: TrainingArguments, name: str, work: Callable[[], T]) -> list[T]:
    """What `work` gave in the first process of each machine; every process gets the same list.

    The others wait for a lock and not for a message, so that work may take longer than `--ddp_timeout`.

    Args:
        name: of the work.
    """
    if training.world_size == 1:
        return [work()]
    # GROUP_RANK: two "machines" of a launch may be one, or have one name and one home, and must not wait for each other
    keys = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    run = (os.environ.get(key, "") for key in keys)
    lock = machine_lock(" ".join((name, *run)))
    if training.local_process_index == 0:
        with lock:
            wait_for_everyone()  # the others come to the lock when it is taken
            results = [work()]
    else:
        wait_for_everyone()
        with lock:
            results = []
    return gather_object(results)


def check_once(training: TrainingArguments) -> Callable[[Path, Iterable[str]], dict[str, str]]:
    """`check_images`, done once a machine; an image that one machine cannot use is used by none."""

    def check(folder: Path, paths: Iterable[str]) -> dict[str, str]:
        broken = once_a_machine(training, f"checking {folder}", lambda: check_images(folder, paths))
        return {path: reason for reasons in broken for path, reason in reasons.items()}

    return check
