"""Towers of every kind are read in one way; what is frozen stays frozen."""

import pytest
import torch
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    RobertaConfig,
    SwinConfig,
    ViTConfig,
)

from hf_medvlm.models.encoding import encode_image, encode_text, patch_grid
from hf_medvlm.models.towers import build_tower, freeze, hidden_size, load_tower

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {
    "vit": (ViTConfig(**SMALL, image_size=32, patch_size=8), 32, (4, 4)),
    "dinov2": (Dinov2Config(**SMALL, image_size=28, patch_size=14), 28, (2, 2)),
    "registers": (Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=14, num_register_tokens=4), 28, (2, 2)),
    "clip": (CLIPVisionConfig(**SMALL, image_size=32, patch_size=8), 32, (4, 4)),
    "swin": (SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4), 64, (8, 8)),
    "resnet": (ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), 64, (8, 8)),
}
TEXT = {"bert": BertConfig(**SMALL, vocab_size=50), "roberta": RobertaConfig(**SMALL, vocab_size=50)}


@pytest.mark.parametrize("name", VISION)
def test_a_vision_tower_gives_pooled_features_and_a_grid_of_patches(name):
    config, size, grid = VISION[name]
    torch.manual_seed(0)
    tower = build_tower(config).eval()
    seen = encode_image(tower, torch.randn(2, 3, size, size))
    width = hidden_size(config)
    assert seen.grid == grid and seen.pooled.shape == (2, width)
    assert seen.patches.shape == (2, grid[0] * grid[1], width)
    (seen.pooled.sum() + seen.patches.sum()).backward()
    idle = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_tower_does_not_see_its_padding(name, pooling):
    torch.manual_seed(0)
    tower = build_tower(TEXT[name]).eval()
    ids, mask = torch.randint(5, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    pad = TEXT[name].pad_token_id
    longer = torch.cat([ids, torch.full((2, 5), pad)], 1), torch.cat([mask, torch.zeros(2, 5, dtype=torch.long)], 1)
    torch.testing.assert_close(
        encode_text(tower, *longer, pooling).pooled, encode_text(tower, ids, mask, pooling).pooled
    )


def test_patches_that_form_no_grid_are_refused():
    with pytest.raises(ValueError, match="gives 30 tokens for 32 x 32 pixels, but its patches of 8 .* 4 x 4 = 16"):
        patch_grid(30, (32, 32), VISION["vit"][0])


def test_one_side_of_a_two_tower_checkpoint_is_loaded(tmp_path):
    text = SMALL | {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    clip = CLIPModel(CLIPConfig(vision_config=SMALL | {"image_size": 32, "patch_size": 8}, text_config=text))
    clip.save_pretrained(tmp_path)
    for side in ("vision", "text"):
        loaded, whole = load_tower(str(tmp_path), side).state_dict(), getattr(clip, f"{side}_model").state_dict()
        assert loaded.keys() == whole.keys() and all(torch.equal(loaded[key], whole[key]) for key in whole)


def test_freezing_and_thawing():
    tower = build_tower(VISION["dinov2"][0]).train()
    freeze(tower)
    assert not tower.training and not any(p.requires_grad for p in tower.parameters())
    freeze(tower, frozen=False)
    assert [n for n, p in tower.named_parameters() if not p.requires_grad] == ["embeddings.mask_token"]
