"""CXR-BERT as Microsoft publishes it: a pooler that nothing runs, and a tokenizer with code that is not run."""

from __future__ import annotations

import json

import torch

from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig, CXRBertModel
from hf_medvlm.families.medklip.model import MedKlipConfig
from hf_medvlm.models.loading import load_tokenizer


def test_the_published_text_model_with_its_pooler_and_tokenizer(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = CXRBertModel(CXRBertConfig(**sizes, vocab_size=12, projection_size=8)).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    weights |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    torch.save(weights | {"bert.embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "pytorch_model.bin")
    code = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    record = model.config.to_dict() | {"auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(record))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "left", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    settings = {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True}
    settings["auto_map"] = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    loaded, tokenizer = CXRBertModel.from_published(tmp_path), load_tokenizer(tmp_path)
    ids = tokenizer("No left effusions", return_tensors="pt").input_ids
    assert ids.tolist() == [[2, 5, 7, 6, 8, 3]]
    with torch.no_grad():
        expected = model.get_projected_text_embeddings(ids)
        assert torch.equal(loaded.get_projected_text_embeddings(ids), expected)


def test_medklip_says_which_logit_means_present():
    assert MedKlipConfig().id2label == {0: "absent", 1: "present"}
