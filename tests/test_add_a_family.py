"""docs/add_a_family.md, followed to the letter: its files in a copy of the checkout, and the contract over them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import call

ROOT = Path(__file__).parent.parent
CONTRACT = ["tests/test_contract.py", "tests/test_compute_metrics.py", "tests/inference/test_predictor.py"]


def blocks(page: str) -> dict[str, tuple[str, str]]:
    """Path -> (whole or "one more line", code) of each block that begins with the name of a file."""
    found = re.findall(r"^```(?:python|yaml)\n# ([\w/.]+)([^\n]*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return {path: (more, code) for path, more, code in found}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the family of the page in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hf_medvlm", "recipes", "tests", "ds_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "setup.cfg", folder)
    for path, (more, code) in blocks((ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")).items():
        file = folder / path
        assert file.exists() == bool(more), path
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.read_text() + "\n\n" + code if more else code)
    return folder


def run_in(checkout: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def forked(checkout: Path, *words: str) -> str:
    done = call(*words, folder=checkout, PYTHONPATH=str(checkout))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_it_touches_one_folder_one_line_one_recipe_and_one_entry():
    page = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    changed = {path for path, (more, _) in blocks(page).items() if more}
    assert changed == {"hf_medvlm/families/__init__.py", "tests/families.py"}
    new = {path for path in blocks(page) if path not in changed}
    recipe = {"recipes/train_classifier.py", "recipes/train_classifier.yaml"}
    assert {str(Path(path).parent) for path in new - recipe} == {"hf_medvlm/families/classifier"} and recipe < new


@pytest.mark.slow
def test_the_family_keeps_the_contract_and_its_recipe_runs(checkout: Path, cache: Path):
    printed = run_in(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_layers.py", *CONTRACT,
                     "-k", "classifier or layers", "-m", "not slow")  # fmt: skip
    assert int(re.search(r"(\d+) passed", printed)[1]) > 30
    small = ["--synthetic_studies", "60", "--synthetic_size", "64", "--dataloader_num_workers", "0"]
    forked(checkout, "-m", "hf_medvlm", "train", "train_classifier", "--max_steps", "3", *small)
    run = "runs/train_classifier/1"
    assert (checkout / run / "report.html").is_file()
    evaluated = forked(checkout, "-m", "hf_medvlm", "evaluate", "--model_name_or_path", run, *small)
    assert "mean_auc" in evaluated
    code = f"from transformers import AutoModelForImageClassification as A; A.from_pretrained({str(checkout / run)!r})"
    forked(checkout, "-c", code)
