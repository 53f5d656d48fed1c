"""Checkpoints: a folder of each family with one file of it damaged, and bare files of weights."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing import mutate
from fuzzing.pool import Made, Reader

FAMILIES = ("blip", "git", "dual_encoder", "patch_ib", "medklip", "biovil_t", "llava", "qwen2_5_vl")
EVIL = "import pathlib\npathlib.Path(__file__).with_name('RAN').write_text('x')\nclass Evil: pass\n"


@cache
def _studies() -> Any:
    from hf_medvlm.data.load import load_splits

    os.environ.setdefault("HF_MEDVLM_CACHE", tempfile.mkdtemp(prefix="fuzz-cache-"))
    return load_splits(synthetic_studies=60, synthetic_size=64)


@cache
def _seed(name: str) -> Path:
    import sys

    sys.path.append(str(Path(__file__).parent.parent.parent / "tests" / "inference"))
    from saved_families import save_family

    folder = Path(tempfile.mkdtemp(prefix="fuzz-model-")) / name
    save_family(name, _studies(), folder)
    return folder


def prepare() -> None:
    """Make the seeds before the workers are forked."""
    import hf_medvlm.families  # noqa: F401

    for name in FAMILIES:
        _seed(name)


class _Runs:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


def make_checkpoint(rng: Random, folder: Path) -> Made:
    name = rng.choice(FAMILIES)
    place = folder / name
    shutil.copytree(_seed(name), place)
    files = sorted(path for path in place.iterdir() if path.is_file())
    path = rng.choice(
        [*files, *(f for f in files if f.suffix == ".json"), place / "config.json", place / "config.json"]
    )
    way = rng.random()
    if way < 0.03:
        return Made(place, f"{name}: nothing", [str(place)], valid=True, known=name)
    if way < 0.1:
        what = _with_code(place, path, rng)
    elif way < 0.16:
        what = mutate.special(path, rng)
    elif way < 0.24:
        path, what = _another_file(place, rng)
    elif path.suffix == ".json" and way < 0.8:
        document, what = json.loads(path.read_text()), ""
        for _ in range(rng.choice([0, 0, 1, 2]) if path.name != "tokenizer.json" else 0):
            document, one = mutate.json_value(document, rng)
            what += f"{one}; "
        content, one = mutate.json_text(document, rng)
        path.write_bytes(content)
        what += one
    elif path.suffix == ".safetensors" and way < 0.6:
        what = _weights(path, rng)
    else:
        content, what = mutate.bytes_of(path.read_bytes(), rng)
        path.write_bytes(content)
    return Made(place, f"{name}, {path.name}: {what}", [str(place)], known=name)


OTHERS: dict[str, Any] = {
    "special_tokens_map.json": {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]", "lstrip": False}},
    "added_tokens.json": {"<new>": 3},
    "chat_template.json": {"chat_template": "{{ messages[0]['content'] }}"},
    "generation_config.json": {"max_new_tokens": 8, "num_beams": 1, "eos_token_id": [2, 3], "do_sample": False},
    "preprocessor_config.json": {"do_resize": True, "size": {"height": 32, "width": 32}, "resample": 3},
    "adapter_config.json": {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "x", "target_modules": ["query"]},
    "model.safetensors.index.json": {"metadata": {}, "weight_map": {"a": "model.safetensors"}},
}
"""Files that a folder may have besides, for what is read of them."""


def _another_file(place: Path, rng: Random) -> tuple[Path, str]:
    name = rng.choice(list(OTHERS))
    content, what = mutate.json_text(OTHERS[name], rng)
    (place / name).write_bytes(content)
    return place / name, f"added; {what}"


def _with_code(place: Path, path: Path, rng: Random) -> str:
    """Code of the checkpoint's own, which must not run."""
    (place / "evil.py").write_text(EVIL)
    kind, auto = rng.choice(
        [
            ("tokenizer_config.json", "AutoTokenizer"),
            ("config.json", "AutoModel"),
            ("config.json", "AutoConfig"),
            ("processor_config.json", "AutoProcessor"),
            ("preprocessor_config.json", "AutoImageProcessor"),
        ]
    )
    file = place / kind
    record = json.loads(file.read_text()) if file.is_file() else {}
    record["auto_map"] = {auto: ["evil.Evil", "evil.Evil"] if auto == "AutoTokenizer" else "evil.Evil"}
    if rng.random() < 0.5:
        record["model_type" if auto in ("AutoModel", "AutoConfig") else "tokenizer_class"] = "evil"
    file.write_text(json.dumps(record))
    if rng.random() < 0.3:
        import torch

        (place / "model.safetensors").unlink(missing_ok=True)
        torch.save({"a": _Runs()}, place / "pytorch_model.bin")
        return f"code in {kind} and in a pickle"
    return f"code in {kind}"


def _weights(path: Path, rng: Random) -> str:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    key = rng.choice(sorted(tensors))
    way = rng.choice(["nan", "shape", "missing", "more", "type"])
    if way == "nan":
        tensors[key] = np.full_like(tensors[key], np.nan) if tensors[key].dtype.kind == "f" else tensors[key]
    elif way == "shape":
        tensors[key] = np.concatenate([np.atleast_1d(tensors[key])] * 2)
    elif way == "missing":
        del tensors[key]
    elif way == "more":
        tensors["nope.weight"] = np.zeros(3, np.float32)
    else:
        tensors[key] = tensors[key].astype(np.float64)
    save_file(tensors, path, {"format": "pt"})
    return f"{key[:40]}: {way}"


def read_checkpoint(made: Made) -> Any:
    """Load it and ask it about a picture: what can be loaded must be of use."""
    import hf_medvlm

    os.chdir(made.target)
    predictor = hf_medvlm.load(made.target, device="cpu")
    study = _studies().test[0]
    picture = _studies().image_folder / study.images[0].path
    if made.known in ("blip", "git", "llava", "qwen2_5_vl"):
        return predictor, predictor.report([picture])
    return predictor, predictor.findings([picture])


def justify_checkpoint(made: Made, result: Any) -> str | None:
    import torch

    predictor, answer = result
    if (made.target / "RAN").exists():
        return None
    if not all(bool(torch.isfinite(p).all()) for p in predictor.model.parameters()):
        return None
    if isinstance(answer[0], dict):
        numbers = answer[0].values()
        return "finite weights, probabilities" if all(math.isfinite(n) and 0 <= n <= 1 for n in numbers) else None
    return "finite weights, a text" if isinstance(answer[0], str) else None


def make_weights(rng: Random, folder: Path) -> Made:
    import torch
    from safetensors.torch import save_file

    tensors = {"linear_1.weight": torch.randn(4, 3), "linear_1.bias": torch.randn(4)}
    suffix = rng.choice([".safetensors", ".bin", ".pt", ".pth", ".ckpt"])
    path = folder / f"weights{suffix}"
    odd: list[Any] = [
        tensors,
        {"state_dict": tensors},
        {"model": tensors},
        [],
        5,
        {},
        {"a": 1},
        _Runs(),
        {1: tensors["linear_1.bias"]},
    ]
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(rng.choice(odd), path, _use_new_zipfile_serialization=rng.random() < 0.7)
    way = rng.random()
    if way < 0.1:
        return Made(path, mutate.special(path, rng), [path.name])
    if way < 0.75:
        content, what = mutate.bytes_of(path.read_bytes(), rng)
        path.write_bytes(content)
        return Made(path, f"{suffix}: {what}", [path.name])
    return Made(path, f"{suffix}: something else inside", [path.name])


def read_weights(made: Made) -> Any:
    from hf_medvlm.models.convert.checkpoint import read_state_dict

    os.chdir(made.target.parent)
    return read_state_dict(made.target)


def justify_weights(made: Made, result: Any) -> str | None:
    import torch

    if (made.target.parent / "RAN").exists() or not result:
        return None
    return "named tensors, no code run" if all(isinstance(v, torch.Tensor) for v in result.values()) else None


READERS = [
    Reader("checkpoints", make_checkpoint, read_checkpoint, justify_checkpoint),
    Reader("weight files", make_weights, read_weights, justify_weights),
]
