"""Runs of recipes/llava_mimic.py in one go, so that a launcher starts its processes once for all of them.

    deepspeed --num_accelerators 2 tests/families/chat/chat_runs.py RUNS.json

RUNS.json is a list of command lines.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

from huggingface_hub import constants

from hf_medvlm.training.run import leave_processes

RECIPE = Path(__file__).parents[3] / "recipes" / "llava_mimic.py"

if __name__ == "__main__":
    if "HF_HUB_CACHE" in os.environ:  # read when huggingface_hub was imported, perhaps before this process was forked
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = os.environ["HF_HUB_CACHE"], True
    main = runpy.run_path(str(RECIPE))["main"]
    # launchers may put options of their own in front
    for words in json.loads(Path(sys.argv[-1]).read_text()):
        main(words)
    leave_processes()
