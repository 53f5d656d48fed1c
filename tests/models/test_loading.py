"""Loading is strict and clear: whatever is wrong with a folder, one line names the file and the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hf_medvlm.models import loading
from hf_medvlm.models.loading import (
    check_family,
    find_folder,
    load_config,
    load_processor,
    load_strictly,
    load_tokenizer,
)
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.models.towers import load_tower

TEXT = "a large left pleural effusion"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([TEXT])
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bert"))


def edit(folder: Path, name: str, **changes) -> None:
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(record | changes))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def as_pickle(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


WEIGHTS = {
    "cut short": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
    "cut in the header": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]),
    "longer than it says": lambda f: (f / "model.safetensors").open("ab").write(b"\0" * 8),
    "empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "header too large": lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4096),
    "LFS pointer": lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x"),
    "web page": lambda f: (f / "model.safetensors").write_text("\n<!DOCTYPE html><html>Sign in</html>"),
    "shard missing": lambda f: (
        (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors")
        and (f / "model.safetensors.index.json").write_text(
            json.dumps(
                {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
            )
        )
    ),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "wrong shape": lambda f: change_weights(f, lambda w: w.update({"pooler.dense.bias": torch.zeros(9)})),
    "wrong shape inside": lambda f: change_weights(
        f, lambda w: w.update({"encoder.layer.1.output.dense.bias": torch.zeros(9)})
    ),
    "key missing": lambda f: change_weights(f, lambda w: w.pop("encoder.layer.1.output.dense.bias")),
    "key too many": lambda f: change_weights(
        f, lambda w: w.update({"encoder.layer.2.output.dense.bias": torch.ones(1)})
    ),
    "NaN": lambda f: change_weights(f, lambda w: w["encoder.layer.1.output.dense.bias"].fill_(float("nan"))),
    "infinite": lambda f: change_weights(f, lambda w: w["embeddings.LayerNorm.weight"].fill_(float("inf"))),
    "code in a pickle": lambda f: as_pickle(f, BertModel(BertConfig(hidden_size=8, num_attention_heads=1))),
    "no pickle": lambda f: (as_pickle(f, {}), (f / "pytorch_model.bin").write_bytes(b"not a pickle at all" * 9)),
}
CONFIGS = {
    "not JSON": "{",
    "a list": "[]",
    "no model_type": "{}",
    "unknown model_type": {"model_type": "evil"},
    "hidden_size 0": {"hidden_size": 0},
    "hidden_size -1": {"hidden_size": -1},
    "hidden_size in words": {"hidden_size": "x"},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 3},
    "unknown activation": {"hidden_act": "evil"},
    "a million layers": {"num_hidden_layers": 1000000},
    "nested 100,000 deep": "[" * 100000,
    "latin-1": '{"model_type": "b\u00e9rt"}'.encode("latin-1"),
    "a null vocabulary": {"vocab_size": None},
    "other sizes": {"intermediate_size": 64},
}


def refused(action) -> str:
    with pytest.raises(ValueError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and len(text) < 700, text
    return text


@pytest.mark.parametrize("name", WEIGHTS)
def test_broken_weights_are_named_in_one_line(folder, name):
    WEIGHTS[name](folder)
    text = refused(lambda: load_strictly(BertModel, folder))
    named = "model.safetensors" in text or "pytorch_model.bin" in text or "model-00002" in text
    assert str(folder) in text and (named or "no weights" in text), text
    if "wrong shape" not in name or "inside" in name:  # of the two, load_tower drops the pooler
        assert str(folder) in refused(lambda: load_tower(str(folder), "text"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_config_is_named_in_one_line(folder, name):
    change = CONFIGS[name]
    if isinstance(change, dict):
        edit(folder, "config.json", **change)
    else:
        content = change if isinstance(change, bytes) else change.encode()
        (folder / "config.json").write_bytes(content)
    assert str(folder) in refused(lambda: load_tower(str(folder), "text"))


def test_a_key_that_does_not_fit_is_named(folder):
    WEIGHTS["wrong shape inside"](folder)
    text = refused(lambda: load_strictly(BertModel, folder))
    assert "1 mismatched: encoder.layer.1.output.dense.bias (9,) for (16,)" in text and "missing" not in text


def test_the_wrong_family_or_folder_is_named(folder, tmp_path):
    assert "'bert'" in refused(lambda: check_family(folder, BertModel, ("blip",)) or check_family(folder, Other))
    assert "no such folder" in refused(lambda: find_folder(tmp_path / "absent"))
    assert "is a file" in refused(lambda: find_folder(folder / "config.json"))
    assert "hf download nobody/nothing" in refused(lambda: find_folder("nobody/nothing"))
    (folder / "config.json").unlink()
    assert "has no config.json (model.safetensors" in refused(lambda: load_config(folder))


class Other(BertModel):
    class config_class(BertConfig):
        model_type = "other"


def test_weights_are_read_in_float32(folder):
    change_weights(folder, lambda w: w.update({key: value.bfloat16() for key, value in w.items()}))
    edit(folder, "config.json", dtype="bfloat16")
    assert load_strictly(BertModel, folder).dtype is torch.float32
    assert load_strictly(BertModel, folder, dtype=torch.bfloat16).dtype is torch.bfloat16


# ------------------------------------------------------------------------------------------- code of a checkpoint


@pytest.fixture
def evil(folder, monkeypatch) -> Path:
    """A folder whose files name its own code; the code leaves a mark, and whoever asks is answered yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    mark = folder / "ran"
    classes = "class EvilTok: pass\nclass EvilModel: pass\nclass EvilConfig: pass\n"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n{classes}")
    return folder


@pytest.mark.parametrize("declared", ["EvilTok", "BertTokenizer", "BertTokenizerFast", None])
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_with_code_is_read_by_the_plain_class(evil, declared, files, caplog):
    expected = load_tokenizer(evil)(TEXT).input_ids
    vocabulary = load_tokenizer(evil).get_vocab()
    (evil / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    if files == "vocab.txt":
        (evil / "tokenizer.json").unlink()
    edit(evil, "tokenizer_config.json", tokenizer_class=declared, auto_map={"AutoTokenizer": ["evil.EvilTok", None]})
    with caplog.at_level("WARNING"):
        assert load_tokenizer(evil)(TEXT).input_ids == expected
    assert "code is not run" in caplog.text and "tokenizer_config.json" in caplog.text
    assert not (evil / "ran").exists()


def test_a_model_with_code_is_refused_unrun(evil):
    edit(
        evil,
        "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"},
    )
    text = refused(lambda: load_tower(str(evil), "text"))
    assert "auto_map" in text and "config.json" in text and "never run" in text
    assert not (evil / "ran").exists()


def test_a_known_model_with_code_is_read_by_the_known_class(evil):
    edit(evil, "config.json", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"})
    assert isinstance(load_tower(str(evil), "text"), BertModel)
    assert not (evil / "ran").exists()


def test_a_processor_with_code_is_refused_unrun(evil):
    record = {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.EvilTok"}}
    (evil / "processor_config.json").write_text(json.dumps(record))
    edit(evil, "config.json", model_type="evil")
    assert "never run" in refused(lambda: load_processor(evil))
    assert not (evil / "ran").exists()


def test_every_call_refuses_code():
    """No `from_pretrained` of ours is without `trust_remote_code=False`, but those that hand their options on."""
    root = Path(loading.__file__).parent.parent
    for path in root.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            call = line.partition("#")[0]
            if ".from_pretrained(" in call and "`" not in call and '"' not in call:
                block = "\n".join(path.read_text().splitlines()[number - 1 : number + 8])
                others = any(
                    name in call for name in ("super()", "nn.Embedding", "GenerationConfig", "Peft")
                )  # no code there
                assert "trust_remote_code=False" in block or others, f"{path}:{number}"
