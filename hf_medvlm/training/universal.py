"""ZeRO checkpoints for another number of processes: DeepSpeed's universal form, which its own command writes.

DeepSpeed cuts the optimizer's state into a piece a process. `python -m deepspeed.checkpoint.ds_to_universal` puts the
pieces together, beside them and to the end or not at all: it names its folder in `latest_universal` last.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LATEST, LATEST_UNIVERSAL = "latest", "latest_universal"


def has_universal_form(checkpoint: Path) -> bool:
    """Whether the universal form of a checkpoint lies in it, whole."""
    named = checkpoint / LATEST_UNIVERSAL
    if not named.is_file():
        return False
    name = named.read_text(encoding="utf-8", errors="replace").strip()
    return (checkpoint / name / "zero" / "optimizer_state.pt").is_file()


def command(checkpoint: Path) -> str:
    """What to type to write the universal form of a checkpoint.

    Raises:
        ValueError: it is no checkpoint of DeepSpeed.
    """
    named = checkpoint / LATEST
    if not named.is_file():
        raise ValueError(f"{checkpoint} has no file {LATEST!r}, so it holds no state of DeepSpeed")
    shards = checkpoint / named.read_text(encoding="utf-8", errors="replace").strip()
    words = ["python", "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    words += ["--input_folder", str(shards), "--output_folder", f"{shards}_universal"]
    return " ".join(map(shlex.quote, words))


def best_beside(checkpoint: Path) -> Path | None:
    """The best checkpoint so far of the run that wrote `checkpoint`; None where there is none."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    best = checkpoint.parent / Path(state.get("best_model_checkpoint") or "").name
    return best if state.get("best_model_checkpoint") and best.is_dir() else None


def read_universal(accelerator: Any, engine: Any, universal: bool) -> None:
    """Let DeepSpeed read the universal form, or the pieces, of the next checkpoint.

    Args:
        accelerator: whose plugin has the settings of an engine that is made later.
        engine: the one that is there already; None.
    """
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["checkpoint"] = (settings.get("checkpoint") or {}) | {"load_universal": universal}
    if hasattr(engine, "load_universal_checkpoint"):
        engine._config.load_universal_checkpoint = universal


@contextmanager
def keeping_groups() -> Iterator[None]:
    """Each group of parameters keeps its settings and counts its own steps when ZeRO-3 reads a universal form.

    DeepSpeed (0.19) gives all groups the settings of the first, so that biases and norms would decay from there on, and
    one count of steps, which each of them would raise at every step.
    """
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    name = "load_hp_checkpoint_state_from_checkpoint_dir_stage3"
    load = getattr(Stage3, name, None)
    if load is None:
        yield
        return

    def load_and_keep(self: Any, folder: str) -> None:
        before = [{key: value for key, value in group.items() if key != "params"} for group in _groups(self)]
        load(self, folder)
        for group, settings in zip(_groups(self), before, strict=True):
            group.update(settings)
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    setattr(Stage3, name, load_and_keep)
    try:
        yield
    finally:
        setattr(Stage3, name, load)


def _groups(sharded: Any) -> list[dict[str, Any]]:
    return sharded.optimizer.param_groups
