"""`load`: a run, a checkpoint or a Hub id -> the `Predictor` of its family, found by what the folder holds."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hf_medvlm.checked import either, flag, length, many, name, named, number, record, words
from hf_medvlm.data.files import load_json
from hf_medvlm.errors import clipped, library_errors
from hf_medvlm.evaluation.base import SETTINGS
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.models.attention import take_kernels_of_any_shape
from hf_medvlm.models.clear_errors import clear_errors
from hf_medvlm.models.loading import load_config, model_type_of, weight_files
from hf_medvlm.models.side_files import check_side_files

ADAPTER = "adapter_config.json"
WRITTEN = record(
    max_length=length,
    max_new_tokens=length,
    num_beams=length,
    prompt=words,
    template=words,
    system_prompt=words,
    text_encoder=words,
    autocast=words,
    findings=many(name),
    thresholds=named(number),
    held_out=named(many(number)),
    options=named(either(words, flag, many(words))),
)
"""What `inference.json` may hold."""


def load(
    run_or_checkpoint: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 8,
) -> Predictor:
    """A trained model that can be asked about radiographs.

    Args:
        run_or_checkpoint: the folder of a run, one of its checkpoints, any folder that `save_pretrained` wrote for a
            family, the original project's files where a family reads them, or a Hub id.
        device: an accelerator where there is one, by default.
        dtype: of the weights, "bfloat16" for example. By default float32, computing in the half precision that the run
            was evaluated in.
        batch_size: images at a time.

    Raises:
        ValueError: no such folder, nothing in it that a family knows, weights that do not fit, an unknown dtype.

    Example:
        >>> model = load("runs/finetune_blip/1")
        >>> model.report("chest.dcm")
        'The heart is normal in size. No pleural effusion.'
    """
    register_families()
    folder = find_folder(run_or_checkpoint)
    family = family_of(folder)
    settings = read_settings(folder)
    where = torch.device(device) if device is not None else _accelerator()
    take_kernels_of_any_shape(where)
    half = None if dtype is not None else settings.get("autocast")
    try:
        with library_errors(f"{folder}: cannot be used", "compare its files with the originals"):
            predictor = family.load_predictor(folder, settings, _dtype(dtype))
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error
    predictor.model.to(where)
    predictor.weights = folder
    predictor.folder, predictor.batch_size = Path(run_or_checkpoint), batch_size
    predictor.autocast = _dtype(half) if half and _knows(where, half) else None
    return predictor


def find_folder(path: str | Path) -> Path:
    """The folder itself, or that of a Hub repository's files once they are fetched.

    Raises:
        ValueError: neither a folder here nor a repository that can be reached.
    """
    folder = Path(path)
    if folder.exists():
        return folder
    name = str(path)
    if folder.is_absolute() or name.startswith(("./", "../", "~", "runs/")) or name.count("/") != 1:
        raise ValueError(f"{path}: there is no such run or checkpoint; name the --output_dir of a run, or a Hub id")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the Hub's client raises errors of several libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no folder here and cannot be fetched from the Hub: {first}") from error


def register_families() -> None:
    """Make the Auto classes know our own models."""
    importlib.import_module("hf_medvlm.families")


def families() -> Iterator[ModuleType]:
    """The `inference` module of every family that has one."""
    import hf_medvlm.families as package

    for family in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{family.name}.inference"
        if family.ispkg and importlib.util.find_spec(name) is not None:
            yield importlib.import_module(name)


def family_of(folder: Path) -> ModuleType:
    """The `inference` module of the family that takes this folder.

    Raises:
        ValueError: none does; the message says what is there.
    """
    model_type = model_type_of(folder) if (folder / "config.json").is_file() else None
    known = list(families())
    for family in known:
        if family.takes(folder, model_type):
            return family
    if model_type is None:
        model_type_of(folder)  # says what is there instead of a config.json
    names = ", ".join(name for family in known for name in family.MODEL_TYPES)
    raise ValueError(f"{folder} holds a {model_type!r:.100} model, which no family here knows; they know {names}")


def read_settings(folder: Path) -> dict[str, Any]:
    """`inference.json` of a run; a checkpoint inside a run shares that of the run. Empty where there is none.

    A null there is a name that is not there.

    Raises:
        ValueError: it is no JSON object.
    """
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        path = place / SETTINGS
        if path.is_file():
            settings = WRITTEN(load_json(path, dict), f"{path}:")
            return {name: value for name, value in settings.items() if value is not None}
    return {}


def _accelerator() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _dtype(name: str | torch.dtype | None) -> torch.dtype:
    if name is None:
        return torch.float32
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype {name!r:.100} is none that weights can have; use float32, bfloat16 or float16")
    return dtype


def _knows(device: torch.device, half: str) -> bool:
    """Whether the device computes in this half precision: float16 is the accelerators' alone."""
    return half == "bfloat16" or device.type != "cpu"


def load_plain(folder: Path) -> Any:
    """The model as a Python without this package would open it, where an upstream class exists.

    Raises:
        ValueError: a file or a value of the folder that cannot be used, weights that do not fit.
    """
    from transformers import AutoModel, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WRITERS

    auto = AutoModelForImageTextToText if load_config(folder).model_type in WRITERS else AutoModel
    weight_files(folder)  # each is checked to be whole
    with clear_errors(folder, "weights"):
        loaded: Any = auto.from_pretrained(
            folder, trust_remote_code=False, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, info = loaded
    wrong = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    wrong = {kind: keys[:5] for kind, keys in wrong.items() if keys}
    if wrong:
        raise ValueError(f"{folder}: the weights do not fit {type(model).__name__}: {clipped(json.dumps(wrong))}")
    return model.eval()


def load_merged(folder: Path, base: str | None) -> Any:
    """The base of a folder's adapter with the adapter in it, checked.

    Args:
        base: the model that it was trained on, where the adapter does not say or it lies elsewhere now.

    Raises:
        ValueError: as `load_plain`; an adapter that does not fit, or does not say what it was trained on.
    """
    from peft import PeftConfig, PeftModel

    check_side_files(folder)
    with clear_errors(folder, ADAPTER):
        named = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not named:
        raise ValueError(f"{folder} holds an adapter that does not say what it was trained on; name it with --base")
    model = load_plain(find_folder(named))
    with clear_errors(folder, "adapter"):
        return PeftModel.from_pretrained(model, str(folder)).eval().merge_and_unload(safe_merge=True)
