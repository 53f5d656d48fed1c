"""Reading checkpoints: nothing pickled is run, nothing is lost in silence."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_medvlm.models.convert.checkpoint import describe_checkpoint, load_weights, read_state_dict


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(3, 2)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".safetensors"])
def test_every_format_gives_the_same_tensors(tmp_path, linear, ending):
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(linear.state_dict(), path)
    read = read_state_dict(path)
    assert read.keys() == linear.state_dict().keys()
    assert all(torch.equal(read[key], value) for key, value in linear.state_dict().items())


def test_a_training_checkpoint_is_unwrapped(tmp_path, linear):
    weights = {f"module.{key}": value for key, value in linear.state_dict().items()}
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "x.pth")
    assert list(read_state_dict(tmp_path / "x.pth")) == ["weight", "bias"]


def test_pickled_code_is_refused(tmp_path, linear):
    torch.save(linear, tmp_path / "module.pt")
    with pytest.raises(ValueError, match="the code in its pickle is not run"):
        read_state_dict(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.pt", b"not a checkpoint", "module|pickle|cannot be read"),
        ("x.safetensors", b"\0\0", "cannot be read"),
        ("x.npz", b"", r"not .\.npz"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_state_dict(tmp_path / name)


def test_a_missing_file_or_one_without_tensors_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_state_dict(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="this is a folder"):
        read_state_dict(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_state_dict(tmp_path / "x.pt")


def test_strict_loading_copies_and_ignores_only_what_is_allowed(linear):
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2), "old.position_ids": torch.arange(3)}
    with pytest.raises(ValueError, match="1 unexpected: old.position_ids"):
        load_weights(linear, state)
    load_weights(linear, state, ignorable=("*.position_ids",))
    assert torch.equal(linear.weight, torch.ones(2, 3)) and linear.weight.requires_grad


def test_strict_loading_lists_all_that_does_not_fit(linear):
    before = linear.weight.clone()
    state = {
        "weight": torch.ones(3, 3),
        "res_features.0.weight": torch.ones(1),
        "disease_embedding_layer.bias": torch.ones(1),
    }
    with pytest.raises(ValueError, match="MedKLIP checkpoint") as error:
        load_weights(linear, state, what="x.pt")
    for part in ("1 missing: bias", "2 unexpected: res_features.0.weight", r"weight (3, 3) for (2, 3)", "x.pt"):
        assert part in str(error.value)
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["encoder.vit_pooler.type_embed", "encoder.missing_previous_emb", "projector.model.0.weight"], "BioViL-T"),
        (["encoder.encoder.conv1.weight", "projector.model.0.weight"], "BioViL image"),
        (["visual.trunk.cls_token", "text.transformer.embeddings.word_embeddings.weight"], "BiomedCLIP"),
        (["model.mm_projector.0.weight", "lm_head.weight"], "LLaVA"),
        (["bert.encoder.layer.0.attention.self.query.weight"], "BERT"),
        (["who.knows"], "unknown checkpoint .1 keys: who.knows"),
        ([], "empty"),
    ],
)
def test_families_are_told_apart(keys, family):
    assert re.search(family, describe_checkpoint(keys))
