"""The user's folder of scorers' weights: which part lies where, and what is said when a part is missing.

Nothing is fetched: a metric whose weights are not there is left out with the reason, and never 0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MissingWeights(ValueError):
    """A scorer's weights or its package are not there; the text says what is missing and where it was looked for."""


def find_file(weights: str | Path | None, folders: Sequence[str], names: Sequence[str], what: str) -> Path:
    """The first of `names` in `weights` itself or in one of its sub-folders called `folders`.

    Args:
        what: whose weights they are, for the message.

    Raises:
        MissingWeights: no folder was named, it is not there, or none of the files lies in it.
    """
    if weights is None:
        raise MissingWeights(f"{what}: no weights folder was named (--clinical_weights DIR)")
    root = Path(weights)
    if not root.is_dir():
        raise MissingWeights(f"{what}: {root} is no folder")
    for folder in (root, *(root / name for name in folders)):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    places = ", ".join(f"{root / name}" for name in folders)
    raise MissingWeights(f"{what}: no {' or '.join(names)} in {root}, nor in {places}")


def require_package(package: str, what: str) -> None:
    """Raise `MissingWeights` where a scorer's own package is not installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingWeights(f"{what}: the package {package} is not installed; pip install {package}")


def read_pickled_weights(path: Path) -> dict[str, Any]:
    """The content of a `.pth` file, tensors and plain data only.

    Raises:
        ValueError: the file is cut short, no torch file, or holds code.
    """
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path} cannot be read as weights ({reason}); it may be cut short, a page or a "
            "pointer in place of the file, or hold code; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no weights by name; fetch it again")
    return content


def load_text_model(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a transformers folder, every weight in its place.

    Raises:
        ValueError: config, weights or tokenizer are missing or do not fit.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        model, info = AutoModel.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, add_prefix_space=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    missing = [key for key in map(str, info["missing_keys"]) if "pooler" not in key]  # no score reads the pooler
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; fetch it again")
    return model.eval(), tokenizer


def default_device(device: str | None = None) -> torch.device:
    """The device that was named, else the first GPU, else the CPU."""
    import torch

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
