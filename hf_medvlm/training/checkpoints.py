"""Checkpoints that are whole, or can be told not to be: a list of files and sizes, written last.

`manifest.json` names every file of a checkpoint with its size, and what wrote it. A checkpoint without it was not
written to its end; one whose files differ from it was damaged since. A run goes on from the newest whole one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medvlm.checked import count, either, many, named, number, record, total, words
from hf_medvlm.data.files import read_json, write_json
from hf_medvlm.errors import clipped
from hf_medvlm.training.deepspeed import read_deepspeed
from hf_medvlm.training.universal import best_beside, command, has_universal_form

if TYPE_CHECKING:
    from transformers import TrainingArguments

MANIFEST = "manifest.json"
WHOLE = record("files", step=count, processes=count, zero_stage=count, files=named(total))
"""What a manifest says."""
TRAINER_STATE = record(
    "global_step max_steps log_history",
    global_step=count,
    max_steps=count,
    epoch=number,
    best_metric=number,
    best_global_step=count,
    best_model_checkpoint=words,
    num_train_epochs=number,
    log_history=many(record()),
    stateful_callbacks=named(either(many(record()), record())),
)
"""What a run must find in `trainer_state.json` to go on."""


def write_manifest(folder: str | Path, step: int, processes: int, zero_stage: int | None) -> None:
    """List what `folder` holds, after all of it is on the disk.

    Args:
        step: optimizer steps that the run had taken.
        processes: how many took part.
        zero_stage: DeepSpeed's ZeRO stage, None without DeepSpeed.
    """
    folder, files = Path(folder), {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    write_json(folder / MANIFEST, {"step": step, "processes": processes, "zero_stage": zero_stage, "files": files})


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"it has no {MANIFEST}, so it was not written to its end, or by an older version")
    manifest = read_json(path.read_text(encoding="utf-8", errors="replace"), path)
    try:
        WHOLE(manifest, MANIFEST)
    except ValueError as error:
        raise ValueError(f"its {MANIFEST} is damaged: {error}") from error
    return manifest


def what_is_wrong(folder: str | Path) -> str | None:
    """Why no run can go on from this checkpoint, in words; None where it is whole."""
    folder = Path(folder)
    try:
        sizes = read_manifest(folder)["files"]
    except (ValueError, OSError) as error:
        return str(error)
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
    if "trainer_state.json" in sizes:
        try:
            _check_state(folder / "trainer_state.json")
        except ValueError as error:
            return str(error)
    if "trainer_state.json" not in sizes or not any(name.startswith("rng_state") for name in sizes):
        return "it holds weights alone, no state of the optimizer and of random numbers (--save_only_model)"
    return None


def _check_state(path: Path) -> None:
    """Raise `ValueError` unless the Trainer could read its state from this file."""
    from transformers import TrainerState

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"its {path.name} is no UTF-8 text ({error.reason})") from error
    state = TRAINER_STATE(read_json(text, f"its {path.name}"), f"its {path.name}:")
    unknown = sorted(state.keys() - {field.name for field in dataclasses.fields(TrainerState)})
    if unknown:
        raise ValueError(f"its {path.name} has {clipped(unknown[0])}, which this version of transformers does not know")


def all_checkpoints(folder: str | Path) -> list[Path]:
    """The `checkpoint-N` of a run's folder, whole or not, the newest first."""
    paths = [path for path in Path(folder).glob("checkpoint-*") if step_of(path) is not None]
    return sorted(paths, key=lambda path: step_of(path) or 0, reverse=True)


def step_of(checkpoint: Path) -> int | None:
    """The N of a `checkpoint-N`; None where there is none."""
    number = checkpoint.name.partition("checkpoint-")[2]
    return int(number) if number.isdigit() else None


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a run's folder, or None."""
    return next((str(path) for path in all_checkpoints(folder) if what_is_wrong(path) is None), None)


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, its manifest first: killed half-way, what is left can be told."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def rotate(folder: str | Path, limit: int | None, keep: list[Path]) -> None:
    """Delete the oldest checkpoints of a run, so that `limit` are left; those of `keep` stay.

    Called when the newest one is whole. The oldest is the one that was finished first, whatever its number.
    """
    if not limit or limit < 0:
        return
    kept = {path.resolve() for path in keep}
    others = [path for path in all_checkpoints(folder) if path.resolve() not in kept]
    others.sort(key=lambda path: (path / MANIFEST).stat().st_mtime_ns if (path / MANIFEST).exists() else 0)
    for path in others[: max(len(others) + len(kept) - limit, 0)]:
        remove_checkpoint(path)


# -- which one a run goes on from --------------------------------------------------------------------------------------


def checkpoint_to_resume(training: TrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means; None where it was not asked for.

    What is passed over, and what cannot be as it was, is said by the main process.

    Raises:
        ValueError: there is no whole checkpoint, or the named one is not whole, or it fits no run of so many processes;
            the message names the way out.
    """
    asked = training.resume_from_checkpoint
    if not asked or str(asked).lower() == "false":
        return None
    if str(asked).lower() == "true":
        newest, folder = None, Path(str(training.output_dir))
        passed = []
        for path in all_checkpoints(folder):
            reason = what_is_wrong(path)
            if reason is None:
                newest = path
                break
            passed.append(f"{path.name}: {reason}")
        if newest is None:
            reasons = f" ({'; '.join(passed)})" if passed else ""
            weights_alone = any("--save_only_model" in reason for reason in passed)
            raise ValueError(
                f"--resume_from_checkpoint: no whole checkpoint in {folder}{reasons}; leave the option out to start "
                f"anew{', from those weights with --model_name_or_path' if weights_alone else ''}"
            )
        for line in passed:
            _say(training, f"{line}; it is passed over, and the run goes on from {newest.name}")
    else:
        newest = Path(asked)
        reason = what_is_wrong(newest) if newest.is_dir() else "there is no such folder"
        if reason is not None:
            whole = last_checkpoint(newest.parent)
            others = f"go on from {whole}" if whole else "leave the option out to start anew"
            if (newest / "model.safetensors").is_file():
                others += f", or begin a new run on its weights with --model_name_or_path {newest}"
            raise ValueError(f"--resume_from_checkpoint {asked}: {reason}; {others}")
    _check_processes(training, newest)
    return str(newest)


def _check_processes(training: TrainingArguments, checkpoint: Path) -> None:
    """Refuse another number of processes under ZeRO, whose optimizer is cut into as many shards; say it elsewhere."""
    manifest = read_manifest(checkpoint)
    processes, now = manifest.get("processes"), int(training.world_size)
    before, stage = manifest.get("zero_stage"), zero_stage(training)
    if before != stage:
        was, is_now = (f"under ZeRO stage {n}" if n is not None else "without DeepSpeed" for n in (before, stage))
        raise ValueError(
            f"--resume_from_checkpoint: {checkpoint} was written {was}, and this run is {is_now}: the two keep the "
            "optimizer's state in different forms. Start it with the --deepspeed that it began with, or begin a new "
            f"run on its weights with --model_name_or_path {checkpoint}"
        )
    if processes == now:
        return
    if stage is not None:
        best = best_beside(checkpoint) if getattr(training, "load_best_model_at_end", False) else None
        needed = [checkpoint, *([best] if best and not was_written_by(best, now) else [])]
        commands = [command(each) for each in needed if not has_universal_form(each)]
        if commands:
            raise ValueError(
                f"--resume_from_checkpoint: {checkpoint} holds the shards of {processes} ZeRO processes, and this run "
                f"has {now}. Start {processes} processes; or begin a new run on its weights with --model_name_or_path "
                f"{checkpoint}; or let DeepSpeed put the shards together, once and with as much disk again, and then "
                f"start {now} as you did now:\n  " + "\n  ".join(commands)
            )
        _say(
            training,
            f"{checkpoint.name} was written by {processes} ZeRO process(es) and goes on in {now} from its universal "
            "form: weights and optimizer are as they were, random numbers (dropout) begin anew",
        )
        return
    _say(
        training,
        f"{checkpoint.name} was written by {processes} process(es) and goes on in {now}: weights and optimizer are as "
        "they were, random numbers (dropout) begin anew",
    )


def was_written_by(checkpoint: str | Path, processes: int) -> bool:
    """Whether a checkpoint holds the state of so many processes."""
    try:
        return read_manifest(checkpoint).get("processes") == processes
    except ValueError:  # of a version before there were manifests
        return True


def zero_stage(training: TrainingArguments) -> int | None:
    """The ZeRO stage that a run is started with; None without DeepSpeed."""
    if not training.deepspeed:
        return None
    return int(read_deepspeed(training.deepspeed).get("zero_optimization", {}).get("stage", 0))


def _say(training: TrainingArguments, line: str) -> None:
    if training.process_index == 0:
        print(line, flush=True)
