"""The environment, as a bug report needs it: versions, devices, compilers, room. Imports torch only to ask for devices.

Nothing private: no host or user name, no path, no token, no value of a variable that is not a plain switch.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hf_medvlm import __version__

PACKAGES = """torch transformers accelerate datasets evaluate peft deepspeed huggingface_hub tokenizers safetensors
    numpy pillow pydicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg nltk rouge-score sacrebleu scikit-learn
    matplotlib pyyaml radgraph RaTEScore torchvision bitsandbytes tensorboard wandb trackio""".split()
PROGRAMS = ("g++", "ninja", "nvcc", "nvidia-smi", "chromium")
SWITCHES = """HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_DATASETS_OFFLINE HF_HUB_DISABLE_XET HF_HUB_DISABLE_TELEMETRY
    CUDA_VISIBLE_DEVICES OMP_NUM_THREADS DS_ACCELERATOR TOKENIZERS_PARALLELISM""".split()
# These hold paths or addresses, which are nobody's business: only whether they are set is told.
PLACES = "HF_HOME HF_ENDPOINT HF_MEDVLM_CACHE TORCH_EXTENSIONS_DIR HF_TOKEN CUDA_HOME".split()


def describe() -> dict[str, dict[str, str]]:
    """Section -> name -> what was found, all as text."""
    return {
        "system": _system(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
        "devices": _devices(),
        "programs": {name: _program(name) for name in PROGRAMS},
        "switches": {n: os.environ[n] for n in SWITCHES if n in os.environ}
        | {n: "set" if n in os.environ else "not set" for n in PLACES},
    }


def report(clinical_weights: str | None = None) -> str:
    """`describe()` as text to paste into an issue; with a folder of weights also what each clinical metric lacks."""
    lines = [f"hf_medvlm {__version__}"]
    for section, values in describe().items():
        lines += ["", section] + [f"  {name:<22} {value}" for name, value in values.items()]
    if clinical_weights is not None:
        lines += ["", "clinical metrics"] + [f"  {name:<22} {state}" for name, state in _clinical(clinical_weights)]
    missing = sorted(name for name in ("torch", "transformers", "accelerate") if not _version(name))
    if missing:
        lines += ["", f"missing: {', '.join(missing)}; run `pip install -c constraints.txt -e .` in the checkout"]
    return "\n".join(lines)


def _clinical(weights: str) -> list[tuple[str, str]]:
    """(metric, "all is there" or what it lacks); the folder is called DIR."""
    from hf_medvlm.metrics.clinical import NEEDS, what_is_missing

    lacking = what_is_missing(list(NEEDS), weights).items()
    return [(name, lacks.replace(weights.rstrip("/"), "DIR") or "all is there") for name, lacks in lacking]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _system() -> dict[str, str]:
    disk = shutil.disk_usage(Path.cwd())
    system = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "environment": "virtual" if sys.prefix != sys.base_prefix else "system",
        "cores": f"{_usable_cores()} of {os.cpu_count()}",
        "disk here": f"{disk.free / 2**30:.0f} GiB free of {disk.total / 2**30:.0f}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        system["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return system


def _usable_cores() -> int:
    """Cores this process may use: fewer than there are, in a container or under a cluster's scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return {"torch": "not installed"}
    import torch

    devices = {"CUDA of torch": str(torch.version.cuda), "accelerator": "none"}
    if torch.accelerator.is_available():
        devices["accelerator"] = str(torch.accelerator.current_accelerator())
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        ability = f"{device.total_memory / 2**30:.0f} GiB, compute {device.major}.{device.minor}"
        devices[f"GPU {number}"] = f"{device.name}, {ability}"
    devices["bfloat16"] = str(torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    return devices


def _program(name: str) -> str:
    """The first line of `name --version`, or that there is none."""
    if shutil.which(name) is None:
        return "not found"
    try:
        answer = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({type(error).__name__})"
    lines = (answer.stdout or answer.stderr).strip().splitlines()
    return lines[-1 if name == "nvcc" else 0].strip() if lines else "found"
