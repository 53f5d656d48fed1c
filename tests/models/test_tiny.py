"""The tokenizer made on the spot, and the sine positions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hf_medvlm.models.positions import mae_positions
from hf_medvlm.models.tiny import train_tokenizer

TEXTS = ["No pleural effusion.", "Small left pleural effusion, new.", "Heart size is normal."]
CODE = f"from hf_medvlm.models.tiny import *; print(sorted(train_tokenizer({TEXTS!r}).get_vocab().items()))"


def test_words_of_the_texts_are_whole_and_others_are_spelt():
    tokenizer = train_tokenizer(TEXTS)
    ids = tokenizer("Small effusion, new").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) == (2, 3)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "small effusion, new"
    assert tokenizer.tokenize("fusion") == ["f", "##u", "##s", "##i", "##o", "##n"]
    assert tokenizer.unk_token_id in tokenizer("\u4e2d").input_ids


def test_every_process_gets_the_same_ids():
    outputs = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        outputs.add(
            subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True).stdout
        )
    assert len(outputs) == 1 and "effusion" in outputs.pop()


def test_no_text_is_an_error():
    with pytest.raises(ValueError, match="every text is empty"):
        train_tokenizer(["", "  "])


def test_positions_differ_from_each_other_and_are_near_where_the_patches_are():
    positions = mae_positions(6, 32)
    assert positions.shape == (36, 32)
    distances = torch.cdist(positions, positions)
    assert (distances + torch.eye(36) > 0.1).all()
    assert distances[0, 1] < distances[0, 5] and distances[0, 6] < distances[0, 30]
