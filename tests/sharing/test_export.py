"""`hf-medvlm export`: plain folders that answer as the run does, opened without this package; ONNX; what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build
from launch import call
from safetensors import safe_open

from hf_medvlm.__main__ import main
from hf_medvlm.inference import load
from hf_medvlm.sharing.export import answers, export_model, probe


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    done = {}

    def of(name: str):
        if name not in done:
            folder = tmp_path_factory.mktemp(name) / "run"
            family = build(name, splits)
            family.model.save_pretrained(folder)
            collator = family.evaluation.collator
            getattr(collator, "processor", None) or collator.image_processor
            (getattr(collator, "processor", None) or collator.image_processor).save_pretrained(folder)
            family.evaluation.write_settings(folder)
            (folder / "predictions.jsonl").write_text("{}")
            done[name] = folder
        return done[name]

    return of


def test_a_full_disk_is_one_sentence_and_leaves_no_half_model(saved, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = saved("dual_encoder")  # made before the limit is there
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="^could not write .*plain: .*; nothing is left there. Free some space"):
            export_model(folder, tmp_path / "plain")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "plain").exists()


PLAIN = """
import sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
assert not any(name.startswith("hf_medvlm") for name in sys.modules)
for folder in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    AutoProcessor.from_pretrained(folder)
    batch = torch.load(folder + "/../probe.pt", weights_only=True)
    with torch.no_grad():
        logits = model.eval()(**batch["inputs"]).logits[:, -batch["logits"].shape[1]:]
    print(type(model).__name__, (logits - batch["logits"]).abs().max().item())
"""


@pytest.mark.slow
def test_writers_open_in_a_fresh_python_with_the_same_logits(saved, tmp_path, capsys):
    folders = []
    for name in ("blip", "git", "llava"):
        to = tmp_path / name / "plain"
        main(["export", str(saved(name)), "--to", str(to)])
        assert "the largest difference is" in capsys.readouterr().out
        assert not (to / "predictions.jsonl").exists() and (to / "inference.json").exists()
        predictor = load(saved(name))
        batch = probe(predictor)
        logits = answers(predictor, predictor.model, batch)
        inputs = {key: value for key, value in batch["prompts"].items() if isinstance(value, torch.Tensor)}
        torch.save({"inputs": inputs, "logits": logits}, to.parent / "probe.pt")
        folders.append(str(to))
    ended = call("-c", PLAIN, *folders, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line.split() for line in ended.stdout.strip().splitlines()]
    assert [name for name, _ in lines] == [
        "BlipForConditionalGeneration",
        "GitForCausalLM",
        "LlavaForConditionalGeneration",
    ]
    assert all(float(difference) < 1e-4 for _, difference in lines)
    with safe_open(f"{folders[2]}/model.safetensors", "pt") as file:
        keys = list(file.keys())
    assert any(key.startswith("vision_tower.vision_model.encoder.") for key in keys), "as serving engines want them"
    assert any(key.startswith("language_model.model.layers.") for key in keys)


@pytest.mark.slow
def test_an_adapter_is_merged_and_opens_in_a_fresh_python(saved, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = saved("llava")
    model = AutoModelForImageTextToText.from_pretrained(base)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    load(base).collator.processor.save_pretrained(adapter)
    exported = export_model(adapter, tmp_path / "merged", base=str(base))
    assert exported.differences["answers"] < 1e-4
    predictor = load(tmp_path / "merged")
    batch = probe(predictor)
    merged = answers(predictor, predictor.model, batch)
    with torch.no_grad():
        wanted = adapted.eval()(**batch["prompts"]).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-3, atol=1e-4)
    inputs = {key: value for key, value in batch["prompts"].items() if isinstance(value, torch.Tensor)}
    torch.save({"inputs": inputs, "logits": wanted}, tmp_path / "probe.pt")
    ended = call("-c", PLAIN, tmp_path / "merged", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    name, difference = ended.stdout.split()
    assert name == "LlavaForConditionalGeneration" and float(difference) < 1e-3
    plain = load(base)
    assert (answers(plain, plain.model, batch) - merged).abs().max() > 1e-2, "the adapter changes something"
    record = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(record | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="--base"):
        export_model(adapter, tmp_path / "again")


def test_dtype_and_shards(saved, tmp_path):
    exported = export_model(saved("blip"), tmp_path / "half", dtype="bfloat16", max_shard_size="1MB")
    files = sorted(path.name for path in exported.folder.glob("*.safetensors"))
    assert len(files) > 1 and (exported.folder / "model.safetensors.index.json").is_file()
    assert load(exported.folder, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="is in use"):
        export_model(saved("blip"), exported.folder)
    with pytest.raises(ValueError, match="float99"):
        export_model(saved("blip"), tmp_path / "x", dtype="float99")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dual_encoder", "biovil_t", "medklip"])
def test_encoders_as_onnx(name, saved, tmp_path, capsys, splits):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'hf_medvlm[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'hf_medvlm[onnx]'")
    to = tmp_path / "onnx"
    main(["export", str(saved(name)), "--to", str(to), "--format", "onnx"])
    assert "the largest difference is" in capsys.readouterr().out
    predictor = load(saved(name))
    paths = [splits.image_folder / study.frontal.path for study in splits.test[:3]]
    pixels = np.concatenate([_pixels(predictor, path) for path in paths])
    session = onnxruntime.InferenceSession(str(to / "image_encoder.onnx"), providers=["CPUExecutionProvider"])
    exported = session.run(None, {"pixel_values": pixels})[0]
    if name == "medklip":
        wanted = np.array([list(predictor.findings(path).values()) for path in paths])
    else:
        wanted = predictor.embed(paths)
        texts = ["No effusion.", "There is a large right pleural effusion."]
        tokens = {key: value.numpy() for key, value in predictor.collator.tokenize(texts).items()}
        text = onnxruntime.InferenceSession(str(to / "text_encoder.onnx"), providers=["CPUExecutionProvider"])
        assert np.abs(text.run(None, tokens)[0] - predictor.embed_texts(texts)).max() < 1e-4
    assert np.abs(exported - wanted).max() < 1e-4


def _pixels(predictor, path) -> np.ndarray:
    from hf_medvlm.data.rows import Row
    from hf_medvlm.inference.pictures import as_studies

    studies, priors, pictures = as_studies([path])
    predictor.see(pictures, priors)
    return predictor.collate([Row(studies[0])])["pixel_values"].numpy()


def test_what_is_not_exported_says_why(saved, tmp_path, capsys, monkeypatch):
    import importlib.metadata

    version, there = importlib.metadata.version, [False]

    def versions(name):
        if name != "gguf":
            return version(name)
        if there:
            return "0.17.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", versions)
    for words, error in (
        (["--format", "onnx"], "exports encoders"),
        (["--format", "gguf"], "(version 0.17.1 is installed here, and is not enough)"),
        (["--format", "gguf"], "(not installed here, and not enough if it were)"),
        (["--format", "gguf"], "Missing here: llama.cpp's checkout, its convert_hf_to_gguf.py"),
    ):
        there = [True] if "0.17.1" in error else []
        with pytest.raises(SystemExit):
            main(["export", str(saved("blip")), "--to", str(tmp_path / "x"), *words])
        assert error in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "runs/nothing/1", "--to", str(tmp_path / "y")])
    assert "no such run" in capsys.readouterr().err
