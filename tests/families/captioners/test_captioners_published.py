"""BLIP and GIT, base and large, in every layout of published files: loaded, fine-tuned, written as upstream's."""

from __future__ import annotations

from types import SimpleNamespace

import published_layouts as layouts
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, BlipForConditionalGeneration, GitForCausalLM

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.families.captioners.collator import CaptionCollator
from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
from hf_medvlm.families.captioners.recipe import CaptioningArguments, load_captioner
from hf_medvlm.training.objective import TokenObjective

KINDS = {
    "blip": (layouts.blip, BlipCaptioner, BlipForConditionalGeneration),
    "git": (layouts.git, GitCaptioner, GitForCausalLM),
}


@pytest.mark.parametrize(
    ("name", "large", "files"),
    [
        ("blip", False, "bin"),
        ("blip", True, "shards"),
        ("blip", True, "safetensors"),
        ("git", False, "safetensors"),
        ("git", True, "bin"),
        ("git", False, "shards"),
    ],
)
def test_a_captioner_as_published(name, large, files, splits, tmp_path):
    write, ours, upstream = KINDS[name]
    torch.manual_seed(0)
    folder = write(tmp_path / "published", large=large, files=files)
    args = SimpleNamespace(model=CaptioningArguments(model_name_or_path=str(folder)))
    model, processor = load_captioner(ours, args, splits)
    assert model.config.vision_config.num_hidden_layers == (24 if large else 12)
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(stock) is upstream
    first = model.first_token(model.config)
    studies = splits.train[:2]
    batch = CaptionCollator(processor, splits.image_folder, first, sections="findings")(studies)
    assert {int(token) for token in batch["input_ids"][:, 0]} == {first}
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pictures = [open_radiograph(splits.image_folder / study.frontal.path).convert("RGB") for study in studies]
    assert torch.equal(batch["pixel_values"], pixels(pictures, return_tensors="pt").pixel_values)
    inputs = {key: batch[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-5)

    objective, losses = TokenObjective(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = objective(model, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "run")
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert type(again) is upstream and not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


def test_a_key_that_is_not_there_is_named(splits, tmp_path):
    folder = layouts.git(tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["git.visual_projection.visual_projection.0.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    args = SimpleNamespace(model=CaptioningArguments(model_name_or_path=str(folder)))
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin.*1 missing: git.visual_projection.visual_projection.0.weight"
    ):
        load_captioner(GitCaptioner, args, splits)
