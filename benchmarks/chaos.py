"""Kill a run with -9 at random moments, resume it each time, and compare its end with a run that was not killed.

    python benchmarks/chaos.py --family dual_encoder --kills 20
    python benchmarks/chaos.py --family blip --kills 20 --processes 2
    python benchmarks/chaos.py --family all --kills 20 --seed 1

A moment is drawn in one of two ways, in turn: after so much processor time, which may fall into the middle of a write,
and before one of the file operations of the run (a checkpoint's, a result's, the page's). Neither depends on how busy
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
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a process with threads cannot be forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil

from hf_medvlm import figures
from hf_medvlm.metrics import wordnet
from hf_medvlm.training.checkpoints import all_checkpoints, last_checkpoint, what_is_wrong
from hf_medvlm.training.folders import is_finished
from hf_medvlm.training.run import run

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--synthetic_studies 60 --synthetic_size 64 --image_size 32 --per_device_train_batch_size 4 --logging_steps 1 "
    "--max_steps 6 --save_steps 2 --eval_steps 2 --lr_scheduler_type constant --warmup_steps 0 --augment True "
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
}
NOT_COMPARED = ("runtime", "seconds", "per_second", "memory")  # what a clock or the machine has a part in


def start(
    main: Callable[[list[str]], Any], words: list[str], log: Path, rank: int, world: int, port: int, at: int
) -> int:
    """Fork a process of a run; return its number.

    Args:
        at: the file operation before which it kills itself; 0: never. How many there were is written beside `log`.
    """
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
        folder = words[words.index("--output_dir") + 1]
        count = _watch_files(folder, at)
        code: Any = 0
        try:
            run(lambda: main(words))
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                print(code, flush=True)
        log.with_suffix(".count").write_text(str(count[0]))
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
        os._exit(0 if not code else code if isinstance(code, int) else 1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def _watch_files(folder: str, at: int) -> list[int]:
    """Count what this process does to files below `folder`, and kill it before operation `at`."""
    count = [0]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def look(event: str, given: tuple) -> None:
        if event == "open":
            if not isinstance(given[2], int) or not given[2] & writing:
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if folder in str(given[0]) and "figures" not in str(given[0]):  # most of them, and made anew in any case
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return count


def attempt(
    main: Callable[[list[str]], Any], words: list[str], log: Path, world: int, seconds: float, at: int, victim: int
) -> bool:
    """Run once in `world` processes; True where it came to its end, False where it was killed.

    Args:
        seconds: of processor time, after which process `victim` is killed, and the others after it; 0: never.
        at: see `start`.

    Raises:
        SystemExit: it ended with an error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = [start(main, words, log, rank, world, port, at if rank == victim else 0) for rank in range(world)]
    status: dict[int, int] = {}
    killed = False
    watched = psutil.Process(pids[victim])
    while len(status) < world:
        done, code = os.waitpid(-1, os.WNOHANG)
        if done:
            status[done] = os.waitstatus_to_exitcode(code)
            killed |= status[done] == -signal.SIGKILL
        elif seconds and not killed:
            try:
                used = sum(watched.cpu_times()[:2])
            except psutil.Error:
                used = 0.0
            if used >= seconds:
                os.kill(pids[victim], signal.SIGKILL)
                killed = True
        if killed:  # as a launcher does when one of its processes is gone
            for pid in set(pids) - set(status):
                os.kill(pid, signal.SIGKILL)
        if not done:
            time.sleep(0.003)
    if not killed and any(status.values()):
        print(log.read_text(errors="replace")[-4000:])
        raise SystemExit(f"a run ended with {sorted(status.values())}: {' '.join(words)}")
    return not killed


def where(folder: Path, steps: int) -> str:
    """What a run was at when it was killed, by what it left."""
    checkpoints = all_checkpoints(folder)
    if (folder / "run.json").exists():
        return "drawing"
    if any(what_is_wrong(path) for path in checkpoints):
        return "saving"
    if not checkpoints:
        return "beginning"
    return "evaluating" if checkpoints[0].name == f"checkpoint-{steps}" else "training"


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


def torment(family: str, kills: int, world: int, seed: int, home: Path) -> dict[str, int]:
    """Kill a run of `family` so many times; return how often at what.

    Raises:
        SystemExit: a run ended differently, or with an error.
    """
    recipe, options = FAMILIES[family]
    main = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))["main"]
    words = [*SMALL.split(), *options.split()]
    draw, log = random.Random(f"{seed} {family} {world}"), home / "log"
    attempt(main, [*words, "--output_dir", str(home / "whole")], log, world, 0, 0, 0)
    for name in log.with_suffix(".modules").read_text().splitlines():  # so that the others need not
        if not name.startswith(("__", "torch.distributed", "torch._C")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    operations = int(log.with_suffix(".count").read_text())
    wanted = outcome(home / "whole")
    before = os.times()
    attempt(main, [*words, "--output_dir", str(home / "again")], log, world, 0, 0, 0)
    after = os.times()
    cost = (after.children_user + after.children_system - before.children_user - before.children_system) / world
    if outcome(home / "again") != wanted:
        raise SystemExit(f"{family}: two runs that were not killed differ; see {home}")
    places: Counter[str] = Counter()
    ended, number, folder = 0, 0, home / "killed"
    while places.total() < kills or folder.exists():
        number += 1
        given = [*words, "--output_dir", str(folder)]
        if last_checkpoint(folder) is not None:
            given += ["--resume_from_checkpoint", "True"]
        by_file = number % 2 == 0
        spared = places.total() >= kills
        at = draw.randint(1, operations) if by_file and not spared else 0
        seconds = draw.uniform(0.05, 1) * cost if not by_file and not spared else 0
        # the first process writes almost everything: the others do too few file operations to be killed at
        victim = 0 if by_file else draw.randrange(world)
        log.unlink(missing_ok=True)
        finished = attempt(main, given, log, world, seconds, at, victim)
        if not finished:
            places[where(folder, 6)] += 1
        if finished or is_finished(folder):
            ended += 1
            outcomes = outcome(folder)
            different = [name for name in wanted if outcomes[name] != wanted[name]]
            if different:
                print(log.read_text(errors="replace")[-3000:])
                raise SystemExit(f"{family}: {', '.join(different)} differ after {dict(places)}; see {home}")
            shutil.rmtree(folder)
    print(
        f"{family:<14}{world} process(es): killed {places.total()} times ({dict(sorted(places.items()))}), "
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
