"""Kill a run with -9 at random moments, resume it each time, and compare its end with a run that was not killed.

    python benchmarks/chaos.py --family dual_encoder --kills 20
    python benchmarks/chaos.py --family blip --kills 20 --processes 2
    python benchmarks/chaos.py --family all --kills 20 --seed 1

Each process says what it is at: preparing, training, saving, evaluating or writing results. Every third moment is drawn
from the whole of a run. The others fall into that of the last four which has been hit least: before one of its file
operations, or after so much of its processor time, which may be in the middle of a write. Neither depends on how busy
the machine is. Whatever a kill leaves, the run goes on as a user's would: with `--resume_from_checkpoint True` where
there is a whole checkpoint, from the start where there is none, and from the beginning in a new folder when it has
ended before its moment came. Each run that ends must have the weights, the losses, the scores and the predictions of
the one that was not killed, to the bit. The first difference ends the script with status 1.

Each attempt is a fork of this process, so that nothing is imported twice. Of the figures, which would take most of the
time, one is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import mmap
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a process with threads cannot be forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hf_medvlm import figures
from hf_medvlm.metrics import wordnet
from hf_medvlm.training.checkpoints import last_checkpoint, step_of
from hf_medvlm.training.folders import is_finished
from hf_medvlm.training.run import run
from hf_medvlm.training.trainer import MedVLMTrainer

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
SMALL = (
    "--synthetic_studies 60 --synthetic_size 64 --image_size 32 --per_device_train_batch_size 4 --logging_steps 1 "
    f"--max_steps {STEPS} --save_steps 2 --eval_steps 2 --lr_scheduler_type constant --warmup_steps 0 --augment True "
    "--dataloader_num_workers 0 --disable_tqdm True --verify_images False"
)
FAMILIES = {
    "blip": ("finetune_blip", "--max_length 16"),
    "git": ("finetune_git", "--max_length 16"),
    "dual_encoder": ("train_dual_encoder", "--probe_studies 20"),
    "patch_ib": ("train_patch_ib", "--probe_studies 20 --variant E --image_size 64"),
    "medklip": ("train_medklip", ""),
    "biovil_t": ("finetune_biovil_t", "--max_length 32"),
    "llava": ("llava_mimic", "--max_new_tokens 8"),
    "chat": ("finetune_chat", "--max_new_tokens 8"),
    "blip_lora": ("finetune_blip", "--max_length 16 --lora_rank 2"),
    "reward_blip": ("finetune_blip", "--max_length 16"),
}
AFTER = {"reward_blip": "--reward findings_f1,cider --reward_samples 2"}
"""What is run on the model of a first run, with these options besides."""
NOT_COMPARED = ("runtime", "seconds", "per_second", "memory")  # what a clock or the machine has a part in


PHASES = ("preparing", "training", "saving", "evaluating", "writing results")
PREPARING, TRAINING, SAVING, EVALUATING, WRITING = range(5)


class Moment(NamedTuple):
    """When to kill: in which phase (None: whichever it is) of which process, before its n-th file operation, or after
    so much of its processor time; never where both are 0."""

    phase: int | None = None
    operation: int = 0
    seconds: float = 0.0
    victim: int = 0


class Watch:
    """What each process of a run is at, which it writes and its parent reads."""

    def __init__(self, world: int) -> None:
        self.all: Any = memoryview(mmap.mmap(-1, world * 96)).cast("d")

    def of(self, rank: int) -> Any:
        """The phase, since when (processor time), and for each phase: seconds before this visit, file operations."""
        return self.all[rank * 12 : rank * 12 + 12]

    def phase(self, rank: int = 0) -> int:
        return int(self.of(rank)[0])

    def spent(self, rank: int, phase: int | None, now: float) -> float:
        """Seconds of processor time so far, of `phase` alone where it is given."""
        if phase is None:
            return now
        record = self.of(rank)
        return record[2 + phase] + (now - record[1] if int(record[0]) == phase else 0.0)

    def operations(self, rank: int = 0) -> list[int]:
        return [int(count) for count in self.of(rank)[7:12]]

    def seconds(self, rank: int = 0) -> list[float]:
        return [*self.of(rank)[2:7]]

    def enter(self, rank: int, phase: int) -> int:
        """Called in the process itself; what it was at until now."""
        record, now = self.of(rank), time.process_time()
        before = int(record[0])
        record[2 + before] += now - record[1]
        record[0], record[1] = phase, now
        return before


def start(
    main: Callable[[list[str]], Any],
    words: list[str],
    log: Path,
    rank: int,
    world: int,
    port: int,
    watch: Watch,
    moment: Moment,
) -> int:
    """Fork a process of a run; return its number. Before the file operation of `moment` it kills itself."""
    pid = os.fork()
    if pid:
        return pid
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if world > 1:
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({name: str(value) for name, value in environment.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        _say_phases(watch, rank)
        _watch_files(words[words.index("--output_dir") + 1], watch, rank, moment)
        code: Any = 0
        try:
            run(lambda: main(words))
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                print(code, flush=True)
        watch.enter(rank, PREPARING)
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
        os._exit(0 if not code else code if isinstance(code, int) else 1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def _say_phases(watch: Watch, rank: int) -> None:
    """Let the trainer of this process say what it is at. What follows the last evaluation is `_watch_files`' to see."""

    def telling(name: str, phase: int) -> None:
        method = getattr(MedVLMTrainer, name)

        def told(self: MedVLMTrainer, *args: Any, **kwargs: Any) -> Any:
            before = watch.enter(rank, phase)
            try:
                return method(self, *args, **kwargs)
            finally:
                # the model and the trainer's state are saved after the training, and then it is evaluated
                after = {"train": SAVING, "save_model": before, "save_state": EVALUATING}.get(name, before)
                watch.enter(rank, after)

        setattr(MedVLMTrainer, name, told)

    for name, phase in (
        ("train", TRAINING),
        ("_save_checkpoint", SAVING),
        ("save_model", SAVING),
        ("save_state", SAVING),
        ("scores", EVALUATING),
    ):
        telling(name, phase)


def _watch_files(folder: str, watch: Watch, rank: int, moment: Moment) -> None:
    """Count what this process does to files below `folder`, and kill it before the one of `moment`."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    record = watch.of(rank)

    def look(event: str, given: tuple) -> None:
        if event == "open":
            if not isinstance(given[2], int) or not given[2] & writing:
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if folder not in str(given[0]):
            return
        if record[0] == EVALUATING:  # an evaluation itself writes nothing
            watch.enter(rank, WRITING)
        if "figures" in str(given[0]):  # most of them, and made anew in any case
            return
        phase = int(record[0])
        record[7 + phase] += 1
        if moment.operation:
            done = sum(record[7:12]) if moment.phase is None else record[7 + phase] if phase == moment.phase else 0
            if done >= moment.operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def attempt(
    main: Callable[[list[str]], Any], words: list[str], log: Path, world: int, moment: Moment
) -> tuple[str | None, Watch]:
    """Run once in `world` processes; what the first process was at when one was killed, None where it came to its end.

    Raises:
        SystemExit: it ended with an error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    watch = Watch(world)
    pids = [start(main, words, log, rank, world, port, watch, moment) for rank in range(world)]
    clock = (~pids[moment.victim] << 3) | 2  # the processor time of that process, to the nanosecond
    status: dict[int, int] = {}
    killed, at = False, None
    while len(status) < world:
        done, code = os.waitpid(-1, os.WNOHANG)
        if done:
            status[done] = os.waitstatus_to_exitcode(code)
            killed |= status[done] == -signal.SIGKILL
        elif moment.seconds and not killed and pids[moment.victim] not in status:
            try:
                used = watch.spent(moment.victim, moment.phase, time.clock_gettime(clock))
            except OSError:
                used = 0.0
            if used >= moment.seconds:
                at = watch.phase()
                os.kill(pids[moment.victim], signal.SIGKILL)
                killed = True
        if killed:  # as a launcher does when one of its processes is gone
            at = watch.phase() if at is None else at
            for pid in set(pids) - set(status):
                os.kill(pid, signal.SIGKILL)
        if not done:
            time.sleep(0.002)
    if not killed and any(status.values()):
        print(log.read_text(errors="replace")[-4000:])
        raise SystemExit(f"a run ended with {sorted(status.values())}: {' '.join(words)}")
    return (PHASES[at] if killed and at is not None else None), watch


def outcome(folder: Path) -> dict[str, Any]:
    """What two runs are compared by."""
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    state = json.loads((folder / "trainer_state.json").read_text())
    history = [kept for entry in state["log_history"] if "train_runtime" not in entry and (kept := timeless(entry))]
    results = {path.name: timeless(json.loads(path.read_text())) for path in folder.glob("*_results.json")}
    predictions = (folder / "predictions.jsonl").read_text()
    best = Path(state["best_model_checkpoint"] or "").name
    return {"weights": weights, "history": history, "results": results, "predictions": predictions, "best": best}


def timeless(value: Any) -> Any:
    """Nested data without what a clock has a part in."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(word in k for word in NOT_COMPARED)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def draw_moment(
    draw: random.Random, number: int, places: Counter[str], whole: Watch, world: int, left: float
) -> Moment:
    """A moment of a run of which the share `left` is still to come, by what the whole of it took."""
    if number % 3 == 0:
        return Moment(seconds=draw.uniform(0.05, 1) * sum(whole.seconds()), victim=draw.randrange(world))
    phase = min((TRAINING, SAVING, EVALUATING, WRITING), key=lambda one: (places[PHASES[one]], draw.random()))
    left = 1.0 if phase == WRITING else left
    operations = round(whole.operations()[phase] * left)
    if number % 3 == 1 and operations:
        # the first process writes almost everything: the others do too few file operations to be killed at
        return Moment(phase, operation=draw.randint(1, operations))
    victim = 0 if phase == WRITING else draw.randrange(world)  # the others wait for it
    return Moment(phase, seconds=draw.uniform(0.02, 0.98) * whole.seconds(victim)[phase] * left, victim=victim)


def torment(family: str, kills: int, world: int, seed: int, home: Path) -> dict[str, int]:
    """Kill a run of `family` so many times; return how often at what.

    Raises:
        SystemExit: a run ended differently, or with an error.
    """
    recipe, options = FAMILIES[family]
    main = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))["main"]
    words = [*SMALL.split(), *options.split()]
    draw, log = random.Random(f"{seed} {family} {world}"), home / "log"
    if family in AFTER:
        attempt(main, [*words, "--output_dir", str(home / "start")], log, world, Moment())
        words += ["--model_name_or_path", str(home / "start"), *AFTER[family].split()]
    attempt(main, [*words, "--output_dir", str(home / "whole")], log, world, Moment())
    for name in log.with_suffix(".modules").read_text().splitlines():  # so that the others need not
        if not name.startswith(("__", "torch.distributed", "torch._C")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    wanted = outcome(home / "whole")
    _, whole = attempt(main, [*words, "--output_dir", str(home / "again")], log, world, Moment())
    if outcome(home / "again") != wanted:
        raise SystemExit(f"{family}: two runs that were not killed differ; see {home}")
    places: Counter[str] = Counter()
    ended, number, folder = 0, 0, home / "killed"
    while places.total() < kills or folder.exists():
        number += 1
        given = [*words, "--output_dir", str(folder)]
        newest = last_checkpoint(folder)
        if newest is not None:
            given += ["--resume_from_checkpoint", "True"]
        left = 1 - (step_of(Path(newest)) or 0) / (STEPS + 1) if newest else 1.0
        spared = places.total() >= kills
        moment = Moment() if spared else draw_moment(draw, number, places, whole, world, left)
        log.unlink(missing_ok=True)
        place, _ = attempt(main, given, log, world, moment)
        if place is not None:
            places[place] += 1
        if place is None or is_finished(folder):
            ended += 1
            outcomes = outcome(folder)
            different = [name for name in wanted if outcomes[name] != wanted[name]]
            if different:
                print(log.read_text(errors="replace")[-3000:])
                raise SystemExit(f"{family}: {', '.join(different)} differ after {dict(places)}; see {home}")
            shutil.rmtree(folder)
    counts = ", ".join(f"{places[phase]} {phase}" for phase in PHASES)
    print(
        f"{family:<14}{world} process(es): killed {places.total()} times ({counts}), "
        f"{ended} runs ended on the bits of the one that was not",
        flush=True,
    )
    return dict(places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=[*FAMILIES, "all"], default="all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in [*figures.DRAWINGS][1:]:
        del figures.DRAWINGS[name]
    wordnet.load()
    for family in FAMILIES if options.family == "all" else (options.family,):
        home = Path(tempfile.mkdtemp(prefix=f"chaos-{family}-"))
        torment(family, options.kills, options.processes, options.seed, home)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
