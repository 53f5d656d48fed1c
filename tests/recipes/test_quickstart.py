"""The notebook is kept as it should be; `tests/test_package.py` runs it, where only the wheel is installed."""

from __future__ import annotations

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "recipes" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell["id"] and cell.get("outputs", []) == [] and cell.get("execution_count") is None
