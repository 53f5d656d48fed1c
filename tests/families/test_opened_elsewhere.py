"""Point 13 of the contract: a fine-tuned BLIP, GIT or LLaVA opens, and writes the same, where this package is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import call
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

CLASSES = {
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "llava": "LlavaForConditionalGeneration",
    "llava_lora": "LlavaForConditionalGeneration",
}


@pytest.fixture(scope="module")
def opened(whole_run) -> dict[str, dict]:
    """What a fresh Python outside the checkout makes of the four folders."""
    folders = [str(whole_run(name)) for name in CLASSES]
    done = call(Path(__file__).parent / "opened.py", *folders, folder=folders[0])
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(CLASSES, map(json.loads, done.stdout.strip().splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_plain_transformers_and_its_pipeline_write_the_runs_reports(name, opened):
    result = opened[name]
    assert result["class"] == CLASSES[name] and result["misfits"] == 0
    ways = {"generate", "pipeline"} | ({"pixels"} if name in ("blip", "git") else set())
    assert result["studies"] > 5
    assert {way: result["same"][way] for way in ways} == dict.fromkeys(ways, result["studies"])
    assert result["generation"][:2] == [24, 1] and None not in result["generation"]
    assert not result["prompt_ends_with_the_end"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "llava_lora"])
def test_llavas_final_folder_has_llava_hfs_names(name, whole_run, tmp_path):
    folder = whole_run(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava" and config["architectures"] == ["LlavaForConditionalGeneration"]
    saved = set(load_file(folder / "model.safetensors"))
    LlavaForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path)
    assert saved == set(load_file(tmp_path / "model.safetensors"))
    assert "ASSISTANT:" in (folder / "chat_template.jinja").read_text()
