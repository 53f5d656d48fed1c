"""How long `prepare_data.py mimic-cxr` takes on MIMIC-CXR's real size, beside only reading every report of its ZIP.

    python benchmarks/prepare_mimic.py                     # 377,110 image rows, 227,835 reports; about a minute
    python benchmarks/prepare_mimic.py --studies 20000     # smaller, in proportion

The corpus is made up (no pixels, reports of a like length) and laid out in a temporary folder; both measurements run in
fresh processes, one after the other, on the same files. Prints seconds, their ratio, and the peak memory of the
recipe's process and of the largest of its workers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.make_corpora import REAL_MIMIC, simulate_mimic, write_mimic

RECIPE = Path(__file__).parents[1] / "recipes" / "prepare_data.py"
READ = """
import sys, time, zipfile
start, characters = time.perf_counter(), 0
with zipfile.ZipFile(sys.argv[1]) as archive:
    for info in archive.infolist():
        characters += len(archive.read(info).decode())
print(time.perf_counter() - start)
"""
PREPARE = """
import os, resource, runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
peak = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("peak", *peak)
"""


def run(code: str, *arguments: object) -> tuple[float, list[str]]:
    """Run Python code in a process of its own; return its seconds from start to end, and the lines it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, encoding="utf-8"
    )
    return time.perf_counter() - start, done.stdout.splitlines()


def measure(root: Path, repeats: int) -> dict[str, float]:
    """The best of `repeats` for each: seconds of reading alone, of the whole preparation, and its peaks in GiB."""
    command = (PREPARE, RECIPE, "mimic-cxr", "--root", root, "--out", root / "master.jsonl")
    reading, preparing, peaks = [], [], []
    for _ in range(repeats):
        reading.append(float(run(READ, root / "mimic-cxr-reports.zip")[1][0]))
        seconds, lines = run(*command)
        preparing.append(seconds)
        peaks.append([float(word) for word in lines[-1].split()[1:]])
    return {
        "reading_s": min(reading),
        "preparing_s": min(preparing),
        "ratio": min(preparing) / min(reading),
        "peak_gib": max(peak for peak, _ in peaks),
        "peak_worker_gib": max(peak for _, peak in peaks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=REAL_MIMIC["studies"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size = {name: count * options.studies // REAL_MIMIC["studies"] for name, count in REAL_MIMIC.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_mimic(Path(folder), simulate_mimic(**size))
        result = size | {name: round(value, 2) for name, value in measure(Path(folder), options.repeats).items()}
    print(json.dumps(result, indent=2))
    print(f"prepared in {result['ratio']} times the time of reading alone; at most 3 is wanted")


if __name__ == "__main__":
    main()
