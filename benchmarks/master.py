"""What a large master file costs before the first step: seconds and memory of `--dry_run`, in each of two processes.

    python benchmarks/master.py                       # 220,000 studies beside an almost empty file
    python benchmarks/master.py --studies 220000 2000000

Each file is started twice: the first start reads every line and keeps its columns, the second finds them. An almost
empty file is started in turn with each, so that the difference comes from the same minutes of the same machine.
Images are not verified; each image path is one of its own, and all lead to a few files through links. Texts are as long
as MIMIC-CXR's. What the dry run itself measures of the loader and the model is timed apart.

Seconds are of the wall, and of the processor, which other work on the machine hardly touches. Memory is the peak of
what a process has in memory (`VmHWM`), file pages that processes share among it; and its own at the end (`RssAnon`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FEW = 60
LINK = "part-{}-of-the-files"
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
            folder = "/".join(LINK.format(digit) for digit in f"{number:06x}")
            images = [
                {"path": f"{folder}/{(number + place) % FEW}.png", "view": view}
                for place, view in enumerate(("PA", "LATERAL"))
            ]
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
    for digit in "0123456789abcdef":
        (folder / LINK.format(digit)).symlink_to(".")


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
    return {name: max(each[name] for each in measured) for name in measured[0]}


def measure(options: argparse.Namespace) -> None:
    """One process of a dry run: run the recipe, and say what it took from the start of Python on."""
    import psutil

    from hf_medvlm.training import preflight

    apart: list[float] = []
    real: Any = preflight.check_loading

    def check_loading(*words: Any) -> None:
        begin, used = time.time(), time.process_time()
        real(*words)
        apart[:] = time.time() - begin, time.process_time() - used

    preflight.check_loading = check_loading  # type: ignore[assignment]
    began = psutil.Process().create_time()
    main = runpy.run_path(str(ROOT / "recipes" / f"{options.recipe}.py"))["main"]
    main(options.words)
    loading = apart or [0.0, 0.0]
    used = psutil.Process().cpu_times()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    measured = {
        "seconds": time.time() - began - loading[0],
        "cpu": used.user + used.system - loading[1],
        "children": used.children_user + used.children_system,
        "mib": int(status["VmHWM"].split()[0]) / 1024,
        "own_mib": int(status["RssAnon"].split()[0]) / 1024,
        "loading": loading[0],
    }
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
                    f"{count:>9,} studies, {which} start, more than an empty dry run in each process: "
                    f"{more['seconds']:.1f} s ({more['cpu']:.1f} s of the processor, and {more['children']:.1f} s of "
                    f"its children), {more['mib']:.0f} MiB, of which {more['own_mib']:.0f} its own; the empty one "
                    f"takes {beside['seconds']:.1f} s ({beside['cpu']:.1f} s), {beside['mib']:.0f} MiB; measuring the "
                    f"loader took {large['loading']:.1f} s, which do not count",
                    flush=True,
                )
            master.unlink()
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
