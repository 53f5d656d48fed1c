"""open_clip's own SigLIP layout against open_clip's outputs; and published towers that no converter here reads."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.dual_encoder.published import save_published
from hf_medvlm.families.dual_encoder.recipe import PairArguments, load_dual_encoder
from hf_medvlm.models.loading import load_tokenizer
from hf_medvlm.models.tiny import train_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "open_clip_siglip"
ODD = {"mean": [0.53, 0.52, 0.51], "std": [0.26, 0.25, 0.24], "interpolation": "bicubic", "resize_mode": "squash"}


def fill(shape: list[int], number: int) -> torch.Tensor:
    """Made-up values in [-0.5, 0.5), the same on every machine."""
    place = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(place * 12.9898 + number * 78.233) * 43758.5453) % 1.0 - 0.5).float().reshape(shape)


@pytest.fixture(params=["siglip", "siglip2"])
def published(request, tmp_path) -> tuple[Path, dict]:
    """A folder in the layout of timm/ViT-B-16-SigLIP, narrow and two layers deep, and what open_clip makes of it."""
    record = json.loads((GOLDEN / f"{request.param}.json").read_text())
    folder = tmp_path / "published"
    folder.mkdir()
    weights = {key: fill(shape, number) for number, (key, shape) in enumerate(sorted(record["keys"].items()))}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": record["model_cfg"], "preprocess_cfg": ODD}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = train_tokenizer(["there is no pleural effusion", "heart size normal"], 110)
    tokenizer.save_pretrained(folder)
    return folder, record


def test_it_loads_trains_and_goes_back(published, splits, tmp_path):
    folder, record = published
    model, processor = load_dual_encoder(DualEncoderModel, PairArguments(model_name_or_path=str(folder)), splits)
    pixels, words = fill([3, 3, 32, 32], 1000) * 4, torch.tensor(record["input_ids"])
    model.eval()
    padding = model.config.text_config.pad_token_id
    model.config.text_config.pad_token_id = 1  # as of the tokenizer that these words are of
    with torch.no_grad():
        images, texts = model.get_image_features(pixels), model.get_text_features(words, (words != 1).long())
        output = model(pixels, words, (words != 1).long())
        logits = output.logits_per_image + model.logit_bias
    model.config.text_config.pad_token_id = padding
    for ours, theirs in ((images, "image_features"), (texts, "text_features"), (logits, "logits")):
        torch.testing.assert_close(ours, torch.tensor(record[theirs]), atol=1e-5, rtol=1e-5)

    # pixels squeezed to the tower's square, words in lower case without punctuation
    picture = Image.fromarray(torch.arange(0, 240, dtype=torch.uint8).reshape(12, 20).numpy()).convert("RGB")
    raw = torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BICUBIC))).float()
    wanted = ((raw / 255 - torch.tensor(ODD["mean"])) / torch.tensor(ODD["std"])).permute(2, 0, 1)
    seen = processor.image_processor(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)
    plain = load_tokenizer(folder)
    for given, cleaned in (
        ("No  Pleural_Effusion; heart-size: NORMAL (stable).", "no pleural effusion heartsize normal stable"),
        ("Status post-CABG, 2.5 cm\tnodule!  ", "status postcabg 25 cm nodule"),
    ):
        assert processor.tokenizer(given).input_ids == plain(cleaned, truncation=True, max_length=16).input_ids

    batch = PairCollator(processor, splits.image_folder, sections="findings")(
        [StudyRows(splits.train)[n] for n in range(4)]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(8):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert loss.isfinite()

    with torch.no_grad():
        wanted = model.eval()(**batch)
    save_published(model, processor, tmp_path / "back", like=folder)
    assert load_file(tmp_path / "back" / "open_clip_model.safetensors").keys() == record["keys"].keys()
    again, _ = load_dual_encoder(DualEncoderModel, PairArguments(model_name_or_path=str(tmp_path / "back")), splits)
    model.save_pretrained(tmp_path / "ours")
    ours = DualEncoderModel.from_pretrained(tmp_path / "ours")
    for other in (again, ours):
        with torch.no_grad():
            assert torch.equal(other.eval()(**batch).logits_per_image, wanted.logits_per_image)
    save_published(model, processor, tmp_path / "stock")
    stock = t.AutoModel.from_pretrained(tmp_path / "stock").eval()
    assert type(stock) is t.SiglipModel
    with torch.no_grad():
        features = stock.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), wanted.image_embeds, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_cfg", {"no_causal_mask": False}, "no_causal_mask False"),
        ("text_cfg", {"pool_type": "argmax"}, "pool_type 'argmax'"),
        ("vision_cfg", {"timm_model_name": "somebodys_vit"}, "'somebodys_vit' says nothing of how many heads"),
    ],
)
def test_other_towers_under_these_keys_are_refused(part, change, message, published):
    folder, _ = published
    record = json.loads((folder / "open_clip_config.json").read_text())
    record["model_cfg"][part] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        DualEncoderModel.from_published(folder)


EVA = {"cls_token": 1, "blocks.0.attn.q_proj.weight": 1, "blocks.0.attn.q_bias": 1, "blocks.0.mlp.w1.weight": 1}
TIMM_EVA = {"visual.trunk.blocks.0.attn.q_proj.weight": 1, "visual.trunk.blocks.0.mlp.fc1_g.weight": 1}
CXR_CLIP = {"image_encoder.image_encoder.layernorm.weight": 1, "text_encoder.text_encoder.pooler.dense.bias": 1}


@pytest.mark.parametrize(
    ("keys", "file", "message"),
    [
        (EVA, "eva_x_base_patch16.pt", "weights of EVA-02 .EVA-X., which.*microsoft/rad-dino"),
        (TIMM_EVA, "open_clip_model.safetensors", "weights of EVA-02 .EVA-X., which.*microsoft/rad-dino"),
        (CXR_CLIP, "swint_mcc.tar", "weights of CXR-CLIP, which.*--text_pooling last"),
    ],
)
def test_what_no_converter_reads_is_named_with_the_way_out(keys, file, message, tmp_path, splits):
    """As a file, as a folder, and as the tower of a pair."""
    weights = {key: torch.zeros(1) for key in keys}
    if file.endswith("safetensors"):
        save_file(weights, tmp_path / file)
        (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    else:  # a config of a class that cannot be read lies beside the weights
        torch.save({"model": weights, "config": argparse.Namespace(name="clip")}, tmp_path / file)
    ways = [str(tmp_path), f"{tmp_path},{tmp_path}"] + [str(tmp_path / file)] * (not file.endswith("safetensors"))
    for way in ways:
        with pytest.raises(ValueError, match=message):
            load_dual_encoder(DualEncoderModel, PairArguments(model_name_or_path=way), splits)
