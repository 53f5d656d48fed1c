"""`recipes/predict.py` over several saved families, under a launcher: OUT STUDIES IMAGE_FOLDER NAME=FOLDER..."""

from __future__ import annotations

import sys
from pathlib import Path

from hf_medvlm.shipped import shipped_folder
from hf_medvlm.training.run import leave_processes

sys.path.insert(0, str(shipped_folder("recipes")))
import predict  # noqa: E402

if __name__ == "__main__":
    out, studies, image_folder, *named = sys.argv[1:]
    for pair in named:
        name, _, folder = pair.partition("=")
        words = [folder, studies, "--image_folder", image_folder, "--out", str(Path(out) / name)]
        predict.main([*words, "--batch_size", "2", "--workers", "0", "--no_page"])
    leave_processes()
