"""Cases in forked workers: each within its seconds and its memory, each with an outcome and never a lost one."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

OWN = (ValueError, OSError, ImportError, SystemExit)
REFUSED, VAGUE, ACCEPTED, UNJUSTIFIED = "refused", "refused without place", "accepted by a rule", "accepted, no rule"
INVALID, DEEP, HANG, MEMORY = "refused though valid", "deep traceback", "hang", "memory"
OUTCOMES = (REFUSED, ACCEPTED, VAGUE, UNJUSTIFIED, INVALID, DEEP, HANG, MEMORY)
BAD = OUTCOMES[2:]


@dataclass
class Made:
    """One input. `names`: one of them must stand in the message of a refusal; `valid`: it must be accepted."""

    target: Any
    what: str
    names: Sequence[str] = ()
    valid: bool = False
    known: Any = None


@dataclass
class Reader:
    """`make(rng, folder)` writes an input, `read(made)` reads it, `justify(made, result)` says why its result is right
    (None where no rule does)."""

    name: str
    make: Callable[[Random, Path], Made]
    read: Callable[[Made], Any]
    justify: Callable[[Made, Any], str | None]


@dataclass
class Outcome:
    reader: str
    seed: int
    kind: str
    what: str = ""
    detail: str = ""
    seconds: float = 0.0
    kept: str = ""


def judge(reader: Reader, seed: int, folder: Path) -> Outcome:
    """Make, read and judge one case in this process."""
    made = reader.make(Random(f"{reader.name} {seed}"), folder)
    begin = time.perf_counter()
    try:
        result = reader.read(made)
    except OWN as error:
        message = str(error)
        spoken = message and len(message) < 4000 and message.count("\n") == 0 and _is_spoken(error)
        if not spoken:
            kind, detail = (DEEP, _last(error)) if isinstance(error, ValueError) else (VAGUE, _last(error))
        elif made.valid:
            kind, detail = INVALID, message
        elif made.names and not any(name in message for name in made.names):
            kind, detail = VAGUE, _last(error)
        else:
            kind, detail = REFUSED, message
    except Exception as error:
        kind, detail = DEEP, _last(error)
    else:
        rule = reader.justify(made, result)
        kind, detail = (ACCEPTED, rule) if rule else (UNJUSTIFIED, "")
    return Outcome(reader.name, seed, kind, made.what, detail[:1500], time.perf_counter() - begin)


def _is_spoken(error: BaseException) -> bool:
    """Whether a message is one of ours: a sentence, and no bare error of a library, which are subclasses mostly."""
    if isinstance(error, ValueError):
        return type(error) is ValueError or type(error).__module__.startswith("hf_medvlm")
    return not isinstance(error, SystemExit) or isinstance(error.code, str)


def _last(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} [{places}]"


def _work(readers: dict[str, Reader], pipe: Connection, answers: str, keep: Path | None) -> None:
    """A worker: cases come in, outcomes go out. It says nothing, and answers `y` to whoever asks."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(os.open(answers, os.O_RDONLY), 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    while True:
        try:
            name, seed = pipe.recv()
        except EOFError:
            return
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        before = Path.cwd()
        try:
            outcome = judge(readers[name], seed, folder)
        except BaseException as error:  # of the driver itself
            outcome = Outcome(name, seed, DEEP, "the driver failed", _last(error))
        os.chdir(before)
        outcome.kept = _keep(folder, outcome, keep)
        shutil.rmtree(folder, ignore_errors=True)
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def _keep(folder: Path, outcome: Outcome, keep: Path | None) -> str:
    if keep is None or outcome.kind not in BAD:
        return ""
    place = keep / f"{outcome.reader.replace(' ', '_').replace('/', '_')}-{outcome.seed}"
    if not place.exists():
        shutil.copytree(folder, place, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(place)


def _told(readers: dict[str, Reader], case: tuple[str, int]) -> str:
    """What was done to an input whose worker cannot say so any more."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return readers[case[0]].make(Random(f"{case[0]} {case[1]}"), Path(folder)).what


class Worker:
    """A forked process, and what it is at."""

    def __init__(self, readers: dict[str, Reader], answers: str, keep: Path | None) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(readers, other, answers, keep), daemon=True)
        self.process.start()
        other.close()
        self.case: tuple[str, int] | None = None
        self.base = self.resident()

    def give(self, case: tuple[str, int]) -> None:
        self.case, self.since, self.spent = case, time.monotonic(), self.processor_seconds()
        self.pipe.send(case)

    def resident(self) -> int:
        return self._status("VmHWM:")

    def _status(self, key: str) -> int:
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)

    def processor_seconds(self) -> float:
        try:
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def overdue(self, limit: float) -> bool:
        """Over its seconds: of the processor, or of the clock where it waits for something that does not come."""
        used = self.processor_seconds() - self.spent
        waited = time.monotonic() - self.since
        return used > limit or (waited > limit and used < 0.05 * waited) or waited > 12 * limit

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except (OSError, TypeError):
            self.process.kill()
        self.process.join()
        self.pipe.close()


def run(
    readers: Sequence[Reader],
    cases: Sequence[tuple[str, int]],
    workers: int = 2,
    limit: float = 10.0,
    memory: int = 2 << 30,
    keep: Path | None = None,
) -> Iterator[Outcome]:
    """The outcome of each case (reader's name, seed), as they come.

    A worker that takes more than `limit` seconds or `memory` bytes over what it began with is killed, and another one
    takes its place.
    """
    named = {reader.name: reader for reader in readers}
    with tempfile.NamedTemporaryFile("w", suffix=".answers") as answers:
        answers.write("y\n" * 1000)
        answers.flush()
        sys.stdout.flush()
        pool = [Worker(named, answers.name, keep) for _ in range(workers)]
        waiting = list(reversed(cases))
        try:
            while waiting or any(worker.case for worker in pool):
                for worker in pool:
                    if worker.case is None and waiting:
                        worker.give(waiting.pop())
                ready = wait([worker.pipe for worker in pool if worker.case], timeout=0.2)
                for place, worker in enumerate(pool):
                    if worker.case is None:
                        continue
                    kind, outcome = "", None
                    if worker.pipe in ready:
                        try:
                            outcome, _ = worker.pipe.recv()
                            kind = MEMORY if worker.resident() - worker.base > memory else ""
                        except (EOFError, OSError):
                            kind = DEEP
                    elif worker.resident() - worker.base > memory:
                        kind = MEMORY
                    elif worker.overdue(limit):
                        kind = HANG
                    if kind:
                        was = outcome or Outcome(*worker.case, kind, _told(named, worker.case), f"stopped: {kind}")
                        was.kind, outcome = kind, was
                        worker.kill()
                        pool[place] = Worker(named, answers.name, keep)
                    elif outcome is not None:
                        worker.case = None
                    if outcome is not None:
                        yield outcome
        finally:
            for worker in pool:
                worker.kill()
