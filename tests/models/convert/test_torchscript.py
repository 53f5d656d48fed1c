"""The tensors of a TorchScript archive, and nothing of its program."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from hf_medvlm.models.convert.checkpoint import read_state_dict


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.nn.Sequential(torch.nn.Linear(3, 2).half(), torch.nn.LayerNorm(2))
        self.turned = torch.nn.Parameter(torch.arange(6.0).view(2, 3).T)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("none", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("the program ran")


def test_the_tensors_are_those_of_the_module(tmp_path: Path) -> None:
    module = Small()
    torch.jit.script(module).save(str(tmp_path / "x.pt"))
    tensors, wanted = read_state_dict(tmp_path / "x.pt"), module.state_dict()
    assert tensors.keys() == wanted.keys()
    assert all(tensors[key].dtype == value.dtype and torch.equal(tensors[key], value) for key, value in wanted.items())


class Harm:
    def __reduce__(self) -> tuple:
        return print, ("harm",)


@pytest.mark.parametrize("content", [pickle.dumps(Harm()), b"\x80\x02}q\x00.", b"junk", b""])
def test_anything_else_is_refused_and_not_run(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(ValueError, match="x.pt"):
        read_state_dict(file)
    assert "harm" not in capsys.readouterr().out


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Small()).save(str(tmp_path / "x.pt"))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "y.pt", "w") as shorter:
        for name in archive.namelist():
            shorter.writestr(name, archive.read(name)[: None if name.endswith((".pkl", ".py")) else 2])
    with pytest.raises(ValueError, match="y.pt"):
        read_state_dict(tmp_path / "y.pt")
