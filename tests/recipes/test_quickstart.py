"""The notebook runs from its first cell to its last, with smaller settings and no window to draw in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "recipes" / "quickstart.ipynb"
SMALL = """
STUDIES, SIZE = 60, 64
CAPTIONER_STEPS, MEDKLIP_STEPS = 3, 3
RUNS = Path("runs/quickstart")
"""


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_kept_without_outputs():
    for cell in cells():
        assert cell["id"] and cell.get("outputs", []) == [] and cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs_from_its_first_cell_to_its_last(cache, tmp_path):
    sources = []
    for cell in cells():
        if cell["cell_type"] == "code":
            sources.append(SMALL if "parameters" in cell["metadata"].get("tags", []) else "".join(cell["source"]))
    assert SMALL in sources
    (tmp_path / "recipes").symlink_to(NOTEBOOK.parent)
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(sources)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, figures in (("captioner", ["loss_curve", "examples"]), ("medklip", ["roc_curve", "heat_maps"])):
        folder = tmp_path / "runs" / "quickstart" / name
        assert (folder / "report.html").is_file()
        assert all((folder / "figures" / f"{figure}.png").is_file() for figure in figures)
    assert "prediction:" in done.stdout
