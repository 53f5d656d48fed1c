"""The package as others get it: its public names, and a wheel whose recipes and notebook run in an empty folder."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from launch import call

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


def test_warnings_of_other_libraries_that_say_nothing_are_not_shown(capfd):
    """And those that do say something are; in a Python of its own, which has imported nothing else."""
    code = (
        "import hf_medvlm, logging; logging.basicConfig()\n"
        "deepspeed = logging.getLogger('DeepSpeed'); ops = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
        "deepspeed.warning('Setting accelerator to CPU. If you have GPU ...'); deepspeed.warning('out of room')\n"
        "ops.warning('Failed to load CPU gemm_4bit_forward from %s', 'x'); ops.warning('%d is wide', 4)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    told = capfd.readouterr().err
    assert "out of room" in told and "4 is wide" in told and "CPU" not in told


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the checkout in a folder of their own: what is built here leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "hf_medvlm"
    ignored = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "runs", ".*_cache", ".venv")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def offline_commands() -> dict[str, list[str]]:
    """Command and subcommand -> its words, as docs/offline.md has them."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/offline.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line) for line in "".join(blocks).splitlines()]
    return {" ".join(words[:2]): words for words in reversed(lines)}  # of two alike the first


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment where docs/offline.md was followed without an index.

    The folder of wheels holds this package alone. Every other package lies in the environment already, borrowed from
    this one, so that pip's own resolver finds whether anything that is asked for would be missing.
    """
    carried, environment = tmp_path_factory.mktemp("carried"), tmp_path_factory.mktemp("environment") / "venv"
    pip = [sys.executable, "-m", "pip"]
    # a PYTHONPATH that leads to the checkout would tell pip that the package is there already
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PIP_"))}
    alone = kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", "wheels", str(source)]
    subprocess.run(build, check=True, env=alone, cwd=carried)
    shutil.copy(ROOT / "constraints.txt", carried)
    venv.create(environment, symlinks=True)
    python, packages = environment / "bin" / "python", next(environment.glob("lib/python*/site-packages"))
    borrowed = environment / "borrowed"
    borrowed.mkdir()
    for folder in [Path(path) for path in sys.path if path.endswith("-packages")]:
        for path in folder.iterdir():
            if not ("hf_medvlm" in path.name or path.suffix == ".pth" or (borrowed / path.name).exists()):
                (borrowed / path.name).symlink_to(path)
    (packages / "borrowed.pth").write_text(str(borrowed))  # it comes after the environment's own packages
    install = [*pip, "--python", str(python), *offline_commands()["pip install"][1:], "--quiet"]
    done = subprocess.run(install, env=alone, cwd=carried, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in packages.glob("hf_medvlm*")] != []
    return python.parent


# Whatever asks for the internet meets a port where nobody answers.
NO_INTERNET = dict.fromkeys(["http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"], "http://127.0.0.1:9")
NO_INTERNET |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_in(folder: Path, *command: str | Path) -> str:
    """What a program prints that runs in a folder which knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= NO_INTERNET
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def from_wheel(installed: Path, folder: Path, *words: str | Path) -> str:
    """What `python WORDS...` prints where modules are looked for in the new environment, and not in the checkout."""
    path = [str(next(installed.parent.glob("lib/python*/site-packages")))]
    path += [entry for entry in sys.path if not Path(entry).resolve().is_relative_to(ROOT)]
    done = call(*words, folder=folder, path=path, PYTHONPATH="", **NO_INTERNET)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_offline_page_carries_everything_in():
    """Wheels are made outside, of source too, with the versions that are installed inside; all hashes are known."""
    commands, text = offline_commands(), (ROOT / "docs/offline.md").read_text()
    collect, install = commands["pip wheel"], commands["pip install"]
    assert "pip download" not in commands and "--no-deps" not in collect + install
    assert install[2:] == ["--no-index", "--find-links", collect[collect.index("-w") + 1], *collect[2:4], "hf_medvlm"]
    assert collect[2:4] == ["-c", "constraints.txt"] and " ".join(install[2:]) in (ROOT / "docs/Dockerfile").read_text()
    needed = closure()
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":  # which the hashes are of
        hashed = {plain(line) for line in (ROOT / "constraints-hashes.txt").read_text().splitlines() if "==" in line}
        assert needed - hashed == set(), "python docs/make_hashes.py"
    sources = re.search(r"a few packages \((.*?)\) are published as source alone", text.replace("\n", " "))
    assert sources and {plain(name) for name in re.split(r", | and ", sources[1])} <= needed


def plain(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def closure() -> set[str]:
    """Every package that an installation brings, through others too."""
    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    seen: set[tuple[str, str]] = set()

    def walk(requirement: Requirement, extra: str) -> None:
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            return
        for asked in {"", *requirement.extras} - {extra for name, extra in seen if name == plain(requirement.name)}:
            seen.add((plain(requirement.name), asked))
            for line in importlib.metadata.requires(requirement.name) or []:
                walk(Requirement(line), asked)

    for line in filter(None, setup["options"]["install_requires"].splitlines()):
        walk(Requirement(line), "")
    return {name for name, _ in seen}


@pytest.mark.slow
def test_recipes_and_plans_run_from_the_wheel(installed: Path, cache: Path, tmp_path: Path):
    show = ["-c", "import hf_medvlm; print(hf_medvlm.__file__)"]
    for where in (run_in(tmp_path, installed / "python", *show), from_wheel(installed, tmp_path, *show)):
        assert where.startswith(str(installed.parent)), "the checkout hides the installed package"
    assert "finetune_blip" in run_in(tmp_path, installed / "hf-medvlm", "train")
    train = ["-m", "hf_medvlm", "train", "finetune_blip", *SMALL]
    from_wheel(installed, tmp_path, *train, "--max_steps", "2")
    run = tmp_path / "runs" / "finetune_blip" / "1"
    assert (run / "report.html").is_file()
    model = ["--model_name_or_path", run, "--image_size", "96", "--dataloader_num_workers", "0"]
    printed = from_wheel(installed, tmp_path, *train, "--config", "finetune_blip", *model, "--dry_run")
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
    printed = from_wheel(installed, tmp_path, "-c", "\n".join(sources))
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
