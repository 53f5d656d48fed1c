"""docs/add_a_family.md, followed to the letter: its files in a copy of the checkout, and the contract over them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import call

from hf_medvlm.data.load import Splits

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add_a_family.md"


def blocks(page: str) -> dict[str, tuple[str, str]]:
    """Path -> (whole or "one more line", code) of each block that begins with the name of a file."""
    blocks = re.findall(r"^```(?:python|yaml)\n# ([\w/.]+)([^\n]*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return {path: (more, code) for path, more, code in blocks}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the family of the page in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hf_medvlm", "recipes", "tests", "ds_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "setup.cfg", folder)
    for path, (more, code) in blocks(PAGE.read_text(encoding="utf-8")).items():
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
    page = PAGE.read_text(encoding="utf-8")
    changed = {path for path, (more, _) in blocks(page).items() if more}
    assert changed == {"hf_medvlm/families/__init__.py", "tests/families.py"}
    new = {path for path in blocks(page) if path not in changed}
    recipe = {"recipes/train_classifier.py", "recipes/train_classifier.yaml"}
    assert {str(Path(path).parent) for path in new - recipe} == {"hf_medvlm/families/classifier"} and recipe < new


@pytest.mark.slow
def test_the_family_keeps_the_contract_and_its_recipe_runs(checkout: Path, splits: Splits):
    """The commands of the page as they stand there, but for the tests of two processes."""
    commands = re.findall(r"^(?:pytest|hf-medvlm) .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    layers, contract, *uses = [shlex.split(line)[1:] for line in commands]
    run_in(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", *layers)
    printed = run_in(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", *contract, "-m", "not slow")
    assert int(re.search(r"(\d+) passed", printed)[1]) > 15
    (checkout / "IMAGES").mkdir()
    for study in splits.test[:3]:
        shutil.copy(splits.image_folder / study.frontal.path, checkout / "IMAGES")
    assert [line[0] for line in uses] == ["train", "train", "predict", "evaluate"]
    for line in uses:
        loader = [] if line[0] == "predict" else ["--dataloader_num_workers", "0"]
        printed = forked(checkout, "-m", "hf_medvlm", *line, *loader)
    assert "mean_auc" in printed
    run = checkout / "runs" / "first"
    assert (run / "report.html").is_file()
    told = [json.loads(line) for line in (checkout / "answers" / "predictions.jsonl").read_text().splitlines()]
    assert len(told) == 3 and all(0 <= value <= 1 for line in told for value in line["probabilities"].values())
    code = f"from transformers import AutoModelForImageClassification as A; A.from_pretrained({str(run)!r})"
    forked(checkout, "-c", code)
