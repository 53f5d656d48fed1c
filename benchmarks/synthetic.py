"""How long the embedded data take: 2,000 synthetic studies at 224 pixels are to be there in under 60 s on 2 cores.

    python benchmarks/synthetic.py
    python benchmarks/synthetic.py --studies 500 --size 128

Draws into a temporary folder on all cores, prints seconds, processor seconds, studies/s and megabytes, then reads the
set again as a second run would.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from hf_medvlm.data.synthetic.studies import make_studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for step in ("draw and write", "read again"):
            start, busy = time.perf_counter(), sum(os.times()[:4])
            studies = make_studies(Path(folder) / "studies", count=args.studies, size=args.size)
            seconds, busy = time.perf_counter() - start, sum(os.times()[:4]) - busy
            print(f"{step:>15}: {seconds:6.2f} s, {busy:6.2f} processor s, {len(studies) / seconds:8.0f} studies/s")
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        print(
            f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.0f} MiB, {os.cpu_count()} cores"
        )


if __name__ == "__main__":
    main()
