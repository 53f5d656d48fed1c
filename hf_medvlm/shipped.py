"""Where the recipes, their YAML plans and the DeepSpeed files are: in the checkout, or inside the installed package."""

from __future__ import annotations

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """The folder `recipes` or `ds_configs`.

    A wheel holds them inside the package; in a checkout they stand beside it.

    Raises:
        FileNotFoundError: neither is there; the installation is not whole.
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"there is no folder {name} in or beside {PACKAGE}; install hf_medvlm again")


def checkout_commit() -> str | None:
    """The commit of the checkout that this package is run from, with "+" where files of it are changed; None where it
    is installed, or git cannot be asked."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            asked = subprocess.run(["git", "-C", str(root), *question], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        answers.append(asked.stdout.strip() if asked.returncode == 0 else "")
    commit, changed = answers
    return commit + "+" * bool(changed) if commit else None


def find_shipped(path: str | Path, folder: str, suffix: str) -> Path:
    """`path` itself where it exists, else the shipped file of that name.

    `find_shipped("finetune_blip", "recipes", ".yaml")`, `"finetune_blip.yaml"` and `"recipes/finetune_blip.yaml"` all
    lead to the same file; so do `patch_ib/E` and, for `ds_configs`, `zero2`. The given path comes back where no
    shipped file has that name, so that opening it raises the usual error.
    """
    given = Path(path)
    if given.is_file() or given.is_absolute():
        return given
    inside = Path(*given.parts[1:]) if len(given.parts) > 1 and given.parts[0] == folder else given
    for name in (inside, inside.with_name(inside.name + suffix)):
        candidate = shipped_folder(folder) / name
        if candidate.is_file():
            return candidate
    return given
