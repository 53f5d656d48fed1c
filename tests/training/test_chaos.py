"""Killed with -9 three times at drawn moments and resumed each time, a run ends on the bits of one that was not."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_on_the_same_bits(root, cache, tmp_path):
    command = [sys.executable, str(root / "benchmarks" / "chaos.py"), "--family", "medklip", "--kills", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "killed 3 times" in done.stdout
