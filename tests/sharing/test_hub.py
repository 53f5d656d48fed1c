"""The model card and the push: what goes, what never goes, and that what arrived loads. Over real HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build
from hub_server import TOKEN, HubServer

from hf_medvlm.sharing.hub import MAY_BE_PUSHED, files_to_push, names_to_push, push, write_model_card

SECRET = "There is a SECRET-WORD effusion of patient p1000032."
INFO = {
    "recipe": "finetune_blip",
    "hf_medvlm": "0.1.0",
    "model_class": "BlipCaptioner",
    "parameters": 912_384,
    "trainable_parameters": 912_384,
    "dataset": "/data/secret/place/master.jsonl",
    "image_folder": "/data/secret/place",
    "command": "finetune_blip.py --dataset /data/secret/place/master.jsonl",
    "sources": ["made-up studies"],
    "licences": ["CC0-1.0"],
    "tokenizer_words": "all words of reports whose licence is open",
    "split_sizes": {"train": 1600, "validate": 200, "test": 200},
    "patients": 812,
    "rejected": {"image cannot be read": 3},
    "data_hash": "ab" * 32,
    "seed": 0,
    "steps": 1000,
    "versions": {"torch": "2.13.0"},
}
RESULTS = {
    "metrics": {"bleu4": 0.31, "mean_auc": None, "auc/Edema": 0.9},
    "baselines": {"constant_normal": {"bleu4": 0.12}},
    "intervals": {"bleu4": [0.28, 0.34]},
    "protocol": {"bleu4": "13a tokens | cased"},
    "n": 200,
    "figures": {
        "audit": {
            "Edema": {"omitted": {"rate": 0.25, "errors": 1, "of": 4, "low": 0.1, "high": 0.4}},
            "Pneumothorax": {"side_wrong": {"rate": 0.5, "errors": 1, "of": 2, "low": None, "high": None}},
        }
    },
}


@pytest.fixture(scope="module")
def model_and_processor(splits):
    from hf_medvlm.families.captioners.model import BlipCaptioner
    from hf_medvlm.models.tiny import train_tokenizer

    tokenizer = train_tokenizer([study.text() for study in splits.train], vocab_size=300)
    torch.manual_seed(0)
    return BlipCaptioner.tiny(tokenizer, 32), BlipCaptioner.tiny_processor(tokenizer, 32)


@pytest.fixture
def run_folder(tmp_path, model_and_processor):
    """A finished run, with everything in it that must not leave the house."""
    folder = tmp_path / "out"
    for part in model_and_processor:
        part.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(INFO))
    (folder / "test_results.json").write_text(json.dumps(RESULTS))
    (folder / "predictions.jsonl").write_text(json.dumps({"study_id": "s50414267", "reference": SECRET}))
    (folder / "rejected.jsonl").write_text(SECRET)
    (folder / "report.html").write_text(SECRET)
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "p1000032.png").write_bytes(b"picture")
    (folder / "notes.txt").write_text(SECRET)
    (folder / "figures").mkdir()
    (folder / "figures" / "heat_maps.png").write_bytes(b"picture")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"old weights")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, with huggingface_hub in this process turned to it."""
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.url, raising=False)
        yield server


def elsewhere(hub: HubServer, home: Path, code: str, *words: str) -> subprocess.CompletedProcess:
    """Run `code` as a user on another machine would, against the test Hub."""
    environment = os.environ | hub.environment(str(home))
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


def test_only_what_loading_needs_is_sent_and_it_arrives_private(run_folder, hub):
    url = push(run_folder, "my-model", token=TOKEN)
    assert url.endswith("/tester/my-model")
    repo = hub.repos["tester/my-model"]
    assert repo.private and len(repo.commits) == 1
    assert set(repo.files) == {path.name for path in files_to_push(run_folder)}
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= set(repo.files)
    for name, content in repo.files.items():
        assert content == (run_folder / name).read_bytes()
        assert not name.endswith((".bin", ".jsonl", ".png", ".html", ".txt"))
        for secret in (b"SECRET-WORD", b"p1000032", b"s50414267", b"/data/secret", str(run_folder.parent).encode()):
            assert secret not in content, name


LOAD_ALL = """
import json, sys, hf_medvlm.families, transformers
from transformers import AutoConfig, AutoModel, AutoProcessor
for name in sys.argv[1:]:
    kind = getattr(transformers, AutoConfig.from_pretrained(name).architectures[0], AutoModel)
    model = kind.from_pretrained(name)
    try:
        processor = AutoProcessor.from_pretrained(name)
    except ImportError:  # some chat models' processors ask for torchvision; ours does without
        processor = hf_medvlm.families.chat.load_processor(name)
    state = {key: value.double().sum().item() for key, value in model.state_dict().items()}
    print(json.dumps([name, type(model).__name__, type(processor).__name__, state]))
"""


@pytest.mark.slow
def test_every_family_is_pushed_listed_pulled_and_is_the_same(splits, hub, tmp_path):
    made = {}
    for name in FAMILIES:
        family, folder = build(name, splits), tmp_path / name
        collator = family.collator(False)
        processor = getattr(collator, "processor", None) or collator.image_processor
        family.model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "run.json").write_text(json.dumps(INFO | {"model_class": type(family.model).__name__}))
        (folder / "predictions.jsonl").write_text(SECRET)
        push(folder, f"tester/{name}", token=TOKEN)
        arrived = hub.repos[f"tester/{name}"].files
        assert sorted(arrived) == names_to_push(family.model, processor), name
        whole = b"".join(arrived.values())
        for study in splits.train[:20]:  # nothing that holds a text, an id or a path of a study
            for secret in (study.text(), study.findings, study.study_id, study.images[0].path):
                assert secret.encode() not in whole, (name, secret)
        state = {key: value.double().sum().item() for key, value in family.model.state_dict().items()}
        made[f"tester/{name}"] = [family.model.config.architectures[0], type(processor).__name__, state]
    answer = elsewhere(hub, tmp_path / "home", LOAD_ALL, *made)
    assert answer.returncode == 0, answer.stderr
    loaded = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]
    assert [name for name, *_ in loaded] == list(made)
    for name, *rest in loaded:
        assert rest == made[name]


def test_what_arrived_loads_with_the_lines_of_its_own_card(run_folder, hub, tmp_path, model_and_processor):
    push(run_folder, "tester/loads", token=TOKEN)
    card = hub.repos["tester/loads"].files["README.md"].decode()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    assert len(lines.strip().splitlines()) == 3 and "tester/loads" in lines and "hf_medvlm" not in lines
    lines += "total = sum(p.double().sum() for p in model.parameters()).item()\n"
    check = "print(type(model).__name__, type(processor).__name__, total)"
    answer = elsewhere(hub, tmp_path / "home", lines + check)
    assert answer.returncode == 0, answer.stderr
    model, processor = model_and_processor
    total = sum(p.double().sum() for p in model.parameters()).item()
    assert answer.stdout.split()[:2] == [model.config.architectures[0], type(processor).__name__]
    assert float(answer.stdout.split()[2]) == pytest.approx(total, rel=1e-12)


def test_a_dry_run_lists_exactly_what_a_push_sends(run_folder, hub, model_and_processor):
    push(run_folder, "tester/listed", token=TOKEN)
    assert names_to_push(*model_and_processor) == sorted(hub.repos["tester/listed"].files)


def test_a_dry_run_refuses_what_the_push_would_refuse(run_folder, capsys, hub):
    from hf_medvlm.__main__ import main

    (run_folder / "inference.json").write_text('{"prompt": "Zebulonsson has"}')
    with pytest.raises(SystemExit):
        main(["push", str(run_folder), "x", "--dry_run"])
    assert "'Zebulonsson' in it may be somebody's name" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Zebulonsson"):
        push(run_folder, "x", token=TOKEN)
    assert hub.repos == {}
    main(["push", str(run_folder), "x", "--dry_run", "--hub_public_acknowledged"])
    assert "inference.json" in capsys.readouterr().out


def test_a_private_push_never_lands_in_a_public_repository(run_folder, hub):
    push(run_folder, "open", token=TOKEN, private=False)
    assert not hub.repos["tester/open"].private
    with pytest.raises(ValueError, match="is there and is public.*--hub_model_id"):
        push(run_folder, "open", token=TOKEN)


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"sources": ["MIMIC-CXR"], "licences": ["PhysioNet Credentialed Health Data License 1.5.0"]},
            "credentialed data",
        ),
        ({"dataset": "/data/mimic_cxr.jsonl"}, "credentialed data"),
        ({"licences": []}, "nobody stated the licence"),
    ],
)
def test_weights_that_saw_closed_data_stay_private_unless_the_user_says_so(run_folder, hub, change, reason):
    (run_folder / "run.json").write_text(json.dumps(INFO | change))
    with pytest.raises(ValueError, match=f"{reason}.*--hub_public_acknowledged"):
        push(run_folder, "closed", token=TOKEN, private=False)
    assert hub.repos == {}
    push(run_folder, "closed", token=TOKEN)
    assert hub.repos["tester/closed"].private
    push(run_folder, "spoken", token=TOKEN, private=False, public_acknowledged=True)
    assert not hub.repos["tester/spoken"].private


def test_a_hub_that_does_not_answer_leaves_the_run_whole(run_folder, hub):
    with pytest.raises(OSError, match="the push to x failed.*the run is safe.*python -m hf_medvlm push"):
        push(run_folder, "x", token="hf_wrong")


def test_a_folder_without_weights_or_without_a_run_is_refused(tmp_path, run_folder):
    with pytest.raises(ValueError, match="no run.json"):
        push(tmp_path, "x")
    (run_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model to push"):
        push(run_folder, "x")


def test_a_link_out_of_the_folder_is_not_followed(run_folder):
    (run_folder / "vocab.txt").symlink_to(run_folder / "predictions.jsonl")
    assert "vocab.txt" in MAY_BE_PUSHED
    assert "vocab.txt" not in {path.name for path in files_to_push(run_folder)}


def test_the_card_says_what_a_reader_must_know(run_folder):
    card = write_model_card(run_folder).read_text()
    for part in (
        "It suggests, never decides",
        "CC0-1.0",
        "1,600 train, 200 validate, 200 test",
        "3 x image cannot be read",
        "| `bleu4` | 0.310 | 0.280 to 0.340 | 0.120 |",
        "| `mean_auc` | undefined |",
        "- `bleu4`: 13a tokens \\| cased",
        "200 studies.",
        "| data set | files of its owner's |",
        "| sources | 1 named in the data |",
    ):
        assert part in card
    assert "| Edema | 0.250 [0.100 to 0.400], 1 of 4 |  |" in card
    assert "| Pneumothorax |  | 0.500, 1 of 2 |" in card and "| finding | omitted | side wrong |" in card
    assert "auc/Edema" not in card and "/data/" not in card and card.startswith("---\nlibrary_name")


def test_the_card_of_a_run_without_scores_or_data_says_so(run_folder):
    (run_folder / "test_results.json").unlink()
    (run_folder / "run.json").write_text(json.dumps({"recipe": "finetune_blip"}))
    card = write_model_card(run_folder).read_text()
    assert "This run was not scored." in card and "not stated: find out before you share anything" in card
