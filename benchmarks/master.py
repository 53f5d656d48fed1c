"""What a large master file costs before the first step: seconds and memory of `--dry_run`, in each of two processes.

    python benchmarks/master.py                       # 220,000 studies beside an almost empty file
    python benchmarks/master.py --studies 220000 2000000

Each file is started twice: the first start reads every line and keeps its columns, the second finds them. An almost
empty file is started in turn with each, so that the difference comes from the same minutes of the same machine.
Images are not verified, since there are none but the first; texts are as long as MIMIC-CXR's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FEW = 60
WORDS = """the lungs are clear no pleural effusion or pneumothorax heart size is normal mild cardiomegaly with small
left basilar atelectasis unchanged from prior study right internal jugular line ends in the mid svc""".split()
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "No Finding", "Pleural Effusion")


def write_master(path: Path, count: int) -> None:
    """Three studies a patient, two images a study, 60 words of text; every tenth patient validates, another tests."""
    rng = random.Random(0)
    pool = [" ".join(rng.choices(WORDS, k=30)) for _ in range(1000)]
    with open(path, "w", encoding="utf-8") as handle:
        for number in range(count):
            patient = 10_000_000 + number // 3
            split = ("validate", "test", *["train"] * 8)[(patient + 5) % 10]
            folder = f"files/p{patient // 1_000_000}/p{patient}/s{50_000_000 + number}"
            names = [f"{rng.getrandbits(160):040x}" for _ in range(2)]
            images = [
                {"path": f"{folder}/{name}.jpg", "view": v} for name, v in zip(names, ("PA", "LATERAL"), strict=True)
            ]
            if number < FEW:
                images = [{"path": f"{number}.png", "view": "PA"}]
            study = {
                "study_id": f"s{50_000_000 + number}",
                "patient_id": f"p{patient}",
                "split": split,
                "images": images,
                "findings": f"{rng.choice(pool)} {rng.choice(pool)}",
                "impression": rng.choice(pool),
                "report": "",
                "labels": {finding: rng.choice((1, 0, -1, None)) for finding in FINDINGS},
                "source": "made up",
                "licence": "CC0",
            }
            handle.write(json.dumps(study) + "\n")


def write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for number in range(FEW):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def start(master: Path, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of a dry run, the larger of its processes; the words after `--` are the recipe's."""
    for file in out.glob("*.json"):
        file.unlink()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.processes)]
    words = ["--dataset", str(master), "--image_folder", str(master.parent), "--verify_images", "False", "--dry_run"]
    words += ["--output_dir", str(out / "run"), "--image_size", "32", *options.words]
    command = [sys.executable, *launch, __file__, "--measure", str(out), "--recipe", options.recipe, "--", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    measured = [json.loads(file.read_text()) for file in out.glob("*.json")]
    if done.returncode or len(measured) != options.processes:
        sys.exit(f"{master.name}: the dry run failed\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return {name: max(each[name] for each in measured) for name in ("seconds", "mib")}


def measure(options: argparse.Namespace) -> None:
    """One process of a dry run: run the recipe, and say what it took from the start of Python on."""
    import psutil

    began = psutil.Process().create_time()
    main = runpy.run_path(str(ROOT / "recipes" / f"{options.recipe}.py"))["main"]
    main(options.words)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measured = {"seconds": time.time() - began, "mib": peak}
    Path(options.measure, f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(measured))
    from hf_medvlm.training.run import leave_processes

    leave_processes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs="+", default=[220_000])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recipe", default="finetune_blip")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="further options of the recipe, behind --")
    options = parser.parse_args()
    if options.measure:
        measure(options)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_MEDVLM_CACHE"] = str(folder / "known")
        (folder / "out").mkdir()
        write_images(folder)
        empty = folder / "empty.jsonl"
        write_master(empty, FEW)
        start(empty, folder / "out", options)  # warms the disk
        for count in options.studies:
            master = folder / f"{count}.jsonl"
            write_master(master, count)
            for which in ("first", "second"):
                beside, large = (start(path, folder / "out", options) for path in (empty, master))
                more = {key: round(large[key] - beside[key], 2) for key in large}
                results[f"{count} {which}"] = {"empty": beside, "large": large, "more": more}
                print(
                    f"{count:>9,} studies, {which} start: {more['seconds']:6.1f} s and {more['mib']:6.0f} MiB more "
                    f"than an empty dry run ({beside['seconds']:.1f} s, {beside['mib']:.0f} MiB) in each process; "
                    f"{large['seconds'] / beside['seconds']:.2f} times its time",
                    flush=True,
                )
            master.unlink()
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
