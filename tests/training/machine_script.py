"""What two processes of one machine do together, started by torchrun: `machine_script.py IMAGES LOG OUT`.

Each process writes what it found to `OUT/<rank>.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hf_medvlm.data import verification
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.machines import check_once
from hf_medvlm.training.run import leave_processes

if __name__ == "__main__":
    images, log, out = map(Path, sys.argv[1:4])
    real = verification.why_unusable

    def count(path: Path) -> str | None:
        with open(log, "a") as handle:
            handle.write(f"{training.process_index} {path.name}\n")
        return real(path)

    verification.why_unusable = count
    training = MedVLMArguments(output_dir=str(out / "run"), use_cpu=True, report_to="none")
    names = sorted(path.name for path in images.iterdir())
    record = {"broken": check_once(training)(images, names), "processes": training.world_size}
    (out / f"{training.process_index}.json").write_text(json.dumps(record))
    leave_processes()
