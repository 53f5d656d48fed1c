"""The package as others get it: its public names, and a wheel whose recipes and notebook run in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

import hf_medvlm

ROOT = Path(__file__).parent.parent
SMALL = ["--synthetic_studies", "60", "--synthetic_size", "64", "--eval_studies", "8", "--disable_tqdm", "True"]
SMALL_NOTEBOOK = """
STUDIES, SIZE = 60, 64
CAPTIONER_STEPS, MEDKLIP_STEPS = 3, 3
RUNS = Path("runs/quickstart")
"""


def test_public_names_are_imported_when_asked_for():
    assert set(hf_medvlm.__all__) == {*hf_medvlm._MODULES, "__version__"}
    assert set(hf_medvlm.__all__) <= set(dir(hf_medvlm))
    for name in hf_medvlm.__all__:
        assert getattr(hf_medvlm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        hf_medvlm.Nothing  # noqa: B018
    code = (
        "import sys; from hf_medvlm import Study; assert 'torch' not in sys.modules; Study('s', 'p', report='Clear.')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the checkout in a folder of their own: what is built here leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "hf_medvlm"
    ignored = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "runs", ".*_cache", ".venv")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that holds the wheel and borrows every other package from this one."""
    wheels, environment = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("environment") / "venv"
    pip, offline = [sys.executable, "-m", "pip"], ["--no-deps", "--no-index", "--quiet"]
    # a PYTHONPATH that leads to the checkout would tell pip that the package is there already
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True, env=alone)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    install = [*pip, "--python", str(python), "install", *offline, str(next(wheels.glob("*.whl")))]
    subprocess.run(install, check=True, env=alone)
    packages = next(environment.glob("lib/python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))  # these come after the environment's own packages
    return python.parent


def run_in(folder: Path, *command: str | Path) -> str:
    """What a program prints that runs in a folder which knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_recipes_and_plans_run_from_the_wheel(installed: Path, cache: Path, tmp_path: Path):
    where = run_in(tmp_path, installed / "python", "-c", "import hf_medvlm; print(hf_medvlm.__file__)")
    assert where.startswith(str(installed.parent)), "the checkout hides the installed package"
    train = [installed / "hf-medvlm", "train", "finetune_blip", *SMALL]
    run_in(tmp_path, *train, "--max_steps", "2")
    run = tmp_path / "runs" / "finetune_blip" / "1"
    assert (run / "report.html").is_file()
    model = ["--model_name_or_path", run, "--image_size", "96", "--dataloader_num_workers", "0"]
    printed = run_in(tmp_path, *train, "--config", "finetune_blip", *model, "--dry_run")
    assert " ok  data " in printed and "STOP" not in printed


@pytest.mark.slow
def test_the_notebook_runs_alone_where_the_wheel_is_installed(installed: Path, cache: Path, tmp_path: Path):
    notebook = shutil.copy(ROOT / "recipes" / "quickstart.ipynb", tmp_path)
    sources = []
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            parameters = "parameters" in cell["metadata"].get("tags", [])
            sources.append(SMALL_NOTEBOOK if parameters else "".join(cell["source"]))
    assert SMALL_NOTEBOOK in sources
    printed = run_in(tmp_path, installed / "python", "-c", "\n".join(sources))
    for name, figures in (("captioner", ["loss_curve", "examples"]), ("medklip", ["roc_curve", "heat_maps"])):
        folder = tmp_path / "runs" / "quickstart" / name
        assert (folder / "report.html").is_file()
        assert all((folder / "figures" / f"{figure}.png").is_file() for figure in figures)
    assert "prediction:" in printed


def test_the_source_distribution_holds_the_checkout(source: Path, tmp_path: Path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0 and "absent from" not in done.stdout + done.stderr, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    made_here = ("build/", "hf_medvlm.egg-info/", ".")
    assert not {name for name in files - packed if not name.startswith(made_here)}
