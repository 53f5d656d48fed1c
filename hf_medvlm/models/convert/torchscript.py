"""The tensors of a TorchScript archive (OpenAI's CLIP is published as one), read without running its program.

An archive is a zip: `data.pkl` describes the objects, `data/N` holds their numbers, `code/` the program. Here the
pickle is read by an unpickler that knows tensors, dictionaries, lists and empty records; `code/` is never opened.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_medvlm.errors import clipped

DEEPEST = 64  # modules in modules
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Record:
    """In the place of a module of the program: its attributes, no behaviour."""


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a zip that holds a program beside its numbers.

    Raises:
        ValueError: a zip whose directory cannot be read.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:  # on a damaged directory zipfile raises errors of several kinds
        raise ValueError(
            f"{path}: cannot be read, a damaged archive ({clipped(str(error))}); fetch the file again"
        ) from error


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors by their dotted names, on the CPU.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything but tensors, lists and records.
        ValueError: a tensor that does not fit the numbers that are there.
    """
    with zipfile.ZipFile(path) as archive:
        described = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(described) != 1:
            raise ValueError("no single data.pkl in the archive")
        root = _Unpickler(archive, described[0]).load()
    return dict(_tensors(root, "", 0))


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, described: str) -> None:
        super().__init__(io.BytesIO(archive.read(described)))
        self.archive, self.folder = archive, described.removesuffix(".pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Record
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _view
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor, list or module")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"{kind!r:.100} is no storage")
        if key not in self.storages:
            member = self.archive.getinfo(f"{self.folder}/{key}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != count * dtype.itemsize:
                raise ValueError(f"{member.filename}: {member.file_size:,} bytes for {count:,} numbers of {dtype}")
            # a copy: what a file gave cannot be written to
            content = bytearray(self.archive.read(member))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of {tuple(size)} in a storage of {storage.numel()} numbers")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > DEEPEST:
        raise ValueError(f"modules in modules more than {DEEPEST} deep")
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Record):
        for key, inner in vars(value).items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key), depth + 1)
