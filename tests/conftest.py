"""Fixtures of the whole suite: made-up studies, made once; no network; two cores."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers and launchers share the cores; before torch is imported
# DeepSpeed builds its operators here, once an environment: two environments that share a folder build for ever anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
# Nothing here is compiled by torch, but bitsandbytes loads the whole compiler, in every Python that imports peft.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

# The files that take longest come first, so that no worker begins a long one when the others have finished.
LONGEST = (
    "families/chat/test_llava_mimic.py",
    "test_contract.py",
    "families/captioners/test_captioning_recipes.py",
    "test_package.py",
    "recipes/test_shipped_plans.py",
    "families/biovil_t/test_biovil_t_recipes.py",
    "families/biovil_t/test_features.py",
    "test_add_a_family.py",
    "training/test_rewarded.py",
    "families/patch_ib/test_patch_ib.py",
    "sharing/test_export.py",
    "inference/test_predict.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist deals the files out in our order, not in that of how many tests they hold."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`LONGEST` first, all others as they stand."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """Garbage collections pass over what importing has made: the Trainer starts each training with a whole one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden outputs beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept from run to run lies here for the whole test session, subprocesses included."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["HF_MEDVLM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def drawing() -> Callable:
    """The real `draw_all`; recipes that a test runs in its own process draw nothing, which would outlast their steps.

    Runs in processes of their own have all figures, and a test that looks at figures draws them.
    """
    from hf_medvlm import figures

    real = figures.draw_all
    figures.draw_all = lambda output_dir: []
    return real


@pytest.fixture(scope="session")
def splits(cache: Path):
    """Sixty made-up studies at 64 pixels."""
    from hf_medvlm.data.load import load_splits

    return load_splits(synthetic_studies=60, synthetic_size=64)


@pytest.fixture(scope="session")
def whole_run(cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """name -> the folder of a finished run of tests/whole_runs.py, which nobody writes to."""
    from whole_runs import finished_runs

    return finished_runs(tmp_path_factory.mktemp("whole_runs"))
