"""Scripts in processes of their own that need not import torch, transformers, peft and DeepSpeed again.

A Python that starts a recipe spends ten seconds of a core on these imports. Here one process a test session imports
them, nothing of hf_medvlm among them, and each script runs in a fork of it: with its own words, environment and working
folder, and its own signals. What a launcher does beside starting processes is not here: tests of a launcher start it.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LIBRARIES = ["torch", "transformers.trainer_seq2seq", "transformers.models.auto.processing_auto", "peft", "accelerate"]
LIBRARIES += ["datasets", "evaluate", "nltk", "sklearn.metrics", "scipy.stats", "matplotlib.pyplot", "deepspeed"]
LIBRARIES += ["transformers.generation", "torch.distributed.tensor", "sacrebleu", "pydicom"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)
TIMEOUT = 1200  # seconds


def _become(words: list[str], folder: str, environment: dict[str, str], path: list[str], output: str) -> None:
    """Runs in the fork: what `python WORDS...` would do."""
    os.setsid()
    gc.freeze()  # the Trainer starts each training with a whole collection, which passes over what is here already
    multiprocessing.set_start_method(None, force=True)  # the fork has inherited the way in which it was started
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry] + path
    sys.orig_argv = [sys.executable, *words]
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.path.insert(0, folder)
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves without them


class Launched:
    """A script that runs, or has run; `subprocess.Popen`'s words, and what it printed so far."""

    def __init__(
        self, words: list[str], folder: Path | None, path: list[str] | None, environment: Mapping[str, str]
    ) -> None:
        self._output = tempfile.mkdtemp(prefix="launched-")
        arguments: list[Any] = [[str(word) for word in words], str(folder or Path.cwd()), dict(environment)]
        arguments += [list(sys.path if path is None else path), f"{self._output}/printed"]
        self._process: BaseProcess = CONTEXT.Process(target=_become, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def printed(self, stream: str) -> str:
        file = Path(f"{self._output}/printed.{stream}")
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    @property
    def stdout(self) -> str:
        return self.printed("stdout")

    @property
    def stderr(self) -> str:
        return self.printed("stderr")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.stdout[-3000:]} {self.stderr[-6000:]}")
        return self._process.exitcode


def start(*words: Any, folder: Path | None = None, path: list[str] | None = None, **environment: str) -> Launched:
    """`python WORDS...` in `folder`, with `environment` on top of the test's; it may begin with `-m` or `-c`.

    Args:
        path: where modules are looked for after `PYTHONPATH`; the test's own `sys.path` by default.
    """
    return Launched([str(word) for word in words], folder, path, os.environ | environment)


def call(*words: Any, folder: Path | None = None, path: list[str] | None = None, **environment: str) -> Launched:
    """As `start`, to its end."""
    launched = start(*words, folder=folder, path=path, **environment)
    launched.wait()
    return launched


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(*words: Any, folder: Path | None = None, port: int | None = None, **environment: str) -> list[Launched]:
    """`python WORDS...` in two processes of one group, as torchrun starts them."""
    group: dict[str, Any] = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    group |= {"DS_ACCELERATOR": "cpu", "MASTER_PORT": str(port or free_port()), **environment}
    return [start(*words, folder=folder, RANK=str(number), LOCAL_RANK=str(number), **group) for number in range(2)]


def together(*words: Any, folder: Path | None = None, port: int | None = None, **environment: str) -> str:
    """As `ranks`, to their end; gives what the two printed.

    Raises:
        AssertionError: one of them did not end with status 0; the other is killed then.
    """
    both, deadline = ranks(*words, folder=folder, port=port, **environment), time.monotonic() + TIMEOUT
    while any(rank.poll() is None for rank in both):
        if any(rank.poll() for rank in both) or time.monotonic() > deadline:
            time.sleep(2)  # the one that fails for its neighbour's sake says so
            kill(both)
            break
        wait([rank._process.sentinel for rank in both if rank.poll() is None], timeout=1)
    printed = "".join(rank.stdout + rank.stderr[-6000:] for rank in both)
    assert [rank.returncode for rank in both] == [0, 0], printed[-12000:]
    return printed


def kill(running: list[Launched]) -> None:
    """With -9, those that still run, all before the first is waited for."""
    for one in running:
        if one.poll() is None:
            one.send_signal(signal.SIGKILL)
    for one in running:
        one.wait()
