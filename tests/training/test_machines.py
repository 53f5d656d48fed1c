"""Two processes of one machine, in one launch that the tests share."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[list[dict], list[str]]:
    """What the two processes found, and what was decoded by whom."""
    folder = tmp_path_factory.mktemp("together")
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir()
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).save(images / f"{number}.png")
    (images / "3.png").write_bytes(b"")
    script = Path(__file__).parent / "machine_script.py"
    launch.together(script, images, folder / "log", folder)
    records = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return records, sorted((folder / "log").read_text().splitlines())


def test_the_first_process_of_a_machine_checks_and_both_know(together: tuple[list[dict], list[str]]) -> None:
    records, decoded = together
    assert [each["processes"] for each in records] == [2, 2]
    assert records[0]["broken"] == records[1]["broken"] == {"3.png": "the file is empty (zero bytes)"}
    assert decoded == [f"0 {number}.png" for number in range(5)]
