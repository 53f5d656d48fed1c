"""Reading published checkpoints: safely (no code in a pickle is run) and strictly (no key is lost in silence).

Of the families it knows only the keys that tell them apart; renaming keys is the business of the modules beside it.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_medvlm.errors import clipped
from hf_medvlm.models.convert.torchscript import is_torchscript, read_torchscript

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where training scripts keep the weights beside the optimizer
SHOWN = 8  # keys of each kind named in an error

# Telling keys, the most particular first: the first row whose texts all occur somewhere in the keys names the family.
FAMILIES = (
    ("EVA-02 (EVA-X)", ("blocks.0.attn.", "blocks.0.mlp.w1")),  # as the authors write it, w1 or w12
    ("EVA-02 (EVA-X)", ("blocks.0.attn.", "blocks.0.mlp.fc1_g.")),  # and as timm does
    ("CXR-CLIP", ("image_encoder.", "text_encoder.text_encoder.")),
    ("BioViL-T image model", ("encoder.vit_pooler.", "encoder.missing_previous_emb")),
    ("BioViL image model", ("encoder.encoder.conv1.", "projector.model.")),
    ("CXR-BERT text model", ("cls_projection_head.",)),
    ("MedKLIP", ("res_features.", "disease_embedding_layer.")),
    ("BiomedCLIP (open_clip, timm tower)", ("visual.trunk.", "text.transformer.")),
    ("CLIP (open_clip or OpenAI)", ("visual.", "transformer.resblocks.")),
    ("LLaVA (original layout)", ("mm_projector.",)),
    ("LLaVA (transformers layout)", ("multi_modal_projector.",)),
    ("GLoRIA", ("img_encoder.", "text_encoder.")),
    ("hf_medvlm dual encoder", ("vision_tower.", "text_tower.", "logit_scale")),
    ("CLIP (transformers layout)", ("vision_model.", "text_model.")),
    ("BLIP captioner", ("vision_model.", "text_decoder.")),
    ("GIT captioner", ("git.image_encoder.",)),
    ("LLaVA projector alone", ("linear_1.", "linear_2.")),
    ("BERT", ("encoder.layer.0.attention.self.query.",)),
)


# Families that no converter here reads -> why not, and what to do.
REFUSED = {
    "EVA-02 (EVA-X)": (
        "its tower has rotary positions and gated layers that timm alone has, and neither timm nor its code is run "
        "here. Take a tower of radiographs that transformers has, such as the DINOv2 microsoft/rad-dino"
    ),
    "CXR-CLIP": (
        "its towers are transformers' own under other names, but its images are read at the Swin's first patch and its "
        "texts at their last token. Where it was made, save model.image_encoder.image_encoder (a Swin) and "
        "model.text_encoder.text_encoder with save_pretrained, put preprocessor_config.json and tokenizer beside them, "
        "and name both folders: --model_name_or_path SWIN,BERT --text_pooling last. Its projections start anew"
    ),
}


def refusal(path: str | Path) -> str:
    """What a weight file holds and why it is not read, where it is of a family that no converter here reads; else "".

    Only names of keys are looked at: those of a safetensors header, or the words in a pickle, which is not run.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        keys = list(_safetensors_header(path, path.stat().st_size))
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            words = [word for name in names for word in re.findall(rb"[A-Za-z_][\w.]+", archive.read(name))]
        keys = [word.decode() for word in words]
    else:
        keys = []
    for name, marks in FAMILIES:
        if name in REFUSED and all(any(mark in key for key in keys) for mark in marks):
            return f"weights of {name}, which cannot be loaded: {REFUSED[name]}"
    return ""


def describe_checkpoint(keys: Iterable[str]) -> str:
    """The published family that `keys` belong to, in words, or "an unknown checkpoint" with its first keys."""
    keys = list(keys)
    for name, marks in FAMILIES:
        if all(any(mark in key for key in keys) for mark in marks):
            return f"a {name} checkpoint"
    return f"an unknown checkpoint ({len(keys)} keys: {', '.join(keys[:3])}, ...)" if keys else "an empty checkpoint"


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON; names the line where that is known.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise OSError("no plain file")
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON at column {error.colno}: {error.msg}") from error
    except (RecursionError, OSError, ValueError) as error:  # no UTF-8, half a surrogate pair, thousands of digits
        reason = "nested too deep" if isinstance(error, RecursionError) else clipped(str(error))
        raise ValueError(f"{path}: cannot be read as JSON ({reason})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name stands for two values."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next((name for name, part in pairs if repr(value[name]) != repr(part)), None)
        if twice is not None:
            raise ValueError(f"{twice!r:.100} stands twice, with different values")
    return value


AGAIN = "fetch the file again"


def check_weight_file(path: str | Path) -> None:
    """Raise `ValueError` where a weight file is missing, cut short, or something else than weights."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file{'; this is a folder' if path.is_dir() else ''}")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(512)
    if not head:
        raise ValueError(f"{path}: the file is empty; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: a git-LFS pointer, not the weights themselves; run `git lfs pull`, or {AGAIN}")
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path}: a web page, not weights (a login or error page was saved in their place); {AGAIN}")
    if path.suffix == ".safetensors":
        _safetensors_header(path, size)


def _safetensors_header(path: Path, size: int) -> dict[str, Any]:
    """The header of a safetensors file, once it is checked that the file is as long as it says."""
    with path.open("rb") as handle:
        first = handle.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path}: cannot be read, cut short or not a safetensors file; {AGAIN}")
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read, its header is no safetensors header; {AGAIN}") from error
    if size != needed:
        raise ValueError(f"{path}: cannot be read, {size:,} bytes instead of the {needed:,} that it needs; {AGAIN}")
    return header


def count_tensors(path: Path) -> int:
    """How many tensors a checked weight file may hold: exact for safetensors, an upper bound for pickles."""
    if path.suffix == ".safetensors":
        return len(_safetensors_header(path, path.stat().st_size))
    try:
        with zipfile.ZipFile(path) as archive:
            return len(archive.namelist())
    except zipfile.BadZipFile:  # the format of before torch 1.6
        return path.stat().st_size


def check_finite(named: Iterable[tuple[str, Tensor]], what: str | Path) -> None:
    """Raise `ValueError` where a weight is NaN or infinite: nothing could be learnt from it, or said with it."""
    broken = []
    for key, value in named:
        value = getattr(value, "ds_tensor", value)  # under ZeRO-3 this process's share
        if value.device.type != "meta" and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            broken.append(key)
    if broken:
        more = ", ..." if len(broken) > SHOWN else ""
        raise ValueError(
            f"{what}: NaN or infinite weights in {len(broken)} keys ({', '.join(broken[:SHOWN])}{more}); the training "
            "that wrote them had diverged. Take an earlier checkpoint"
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one file on the CPU, out of a training script's wrapper and without DataParallel's `module.`.

    Args:
        path: a `.safetensors` file, or a pickled `.pt`, `.pth`, `.bin` or `.ckpt`, read with `weights_only=True`; of a
            TorchScript archive the tensors alone.

    Raises:
        ValueError: no such file, an unknown ending, a file that cannot be read or wants code run, no tensors in it.
    """
    path = Path(path)
    if path.is_file() and path.suffix not in (".safetensors", *PICKLED):
        raise ValueError(f"{path}: a weight file ends in .safetensors, {', '.join(PICKLED)}, not {path.suffix!r:.100}")
    check_weight_file(path)
    has_program = path.suffix in PICKLED and is_torchscript(path)
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        elif has_program:  # which is not run
            loaded = read_torchscript(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = clipped(str(error).splitlines()[0])
        raise ValueError(
            f"{path}: not a plain file of tensors, and the code in its pickle is not run ({reason}). Take a checkpoint "
            "you trust, load it where it was made and save its state_dict() as .safetensors"
        ) from error
    except Exception as error:  # a pickle of random bytes can fail in any way
        reason = clipped((str(error).splitlines() or [""])[0])
        raise ValueError(
            f"{path}: cannot be read, cut short or not a checkpoint ({type(error).__name__}: {reason}); {AGAIN}"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    named: Mapping[Any, Any] = loaded if isinstance(loaded, Mapping) else {}
    tensors = {key: value for key, value in named.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name (found {type(loaded).__name__}); a state dict is needed")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignorable: Iterable[str] = (), what: str = "checkpoint"
) -> None:
    """Copy `state_dict` into `model` in place, under ZeRO-3 too; every key must fit but those that `ignorable` allows.

    Args:
        ignorable: shell patterns (`*.position_ids`) of keys that may be missing, unexpected or left over.
        what: what is being loaded, for the error.

    Raises:
        ValueError: missing, unexpected, mis-shaped or undefined (NaN) keys, listed, and what they look like.
    """
    ignorable = tuple(ignorable)
    parameters = model.state_dict(keep_vars=True)
    # under ZeRO-3 a parameter is an empty shard that remembers its shape
    shapes = {key: tuple(getattr(value, "ds_shape", value.shape)) for key, value in parameters.items()}

    def named(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if not any(fnmatchcase(key, pattern) for pattern in ignorable)]

    problems = {
        "missing": named(key for key in parameters if key not in state_dict),
        "unexpected": named(key for key in state_dict if key not in parameters),
        "mis-shaped": [
            f"{key} {tuple(value.shape)} for {shapes[key]}"
            for key, value in state_dict.items()
            if key in parameters and tuple(value.shape) != shapes[key]
        ],
    }
    if any(problems.values()):
        lines = [
            f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
            for kind, keys in problems.items()
            if keys
        ]
        raise ValueError(
            f"{what} does not fit {type(model).__name__}; its keys look like {describe_checkpoint(state_dict)}: "
            + "; ".join(lines)
        )
    check_finite(state_dict.items(), what)
    with torch.no_grad():
        for key, value in state_dict.items():
            if key in parameters:
                with _gathered(parameters[key]):
                    parameters[key].copy_(value)


def _gathered(tensor: Tensor):
    """The whole of a ZeRO-3 parameter for the length of a block, written back to all processes; else nothing to do."""
    if not hasattr(tensor, "ds_shape"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor], modifier_rank=0)
