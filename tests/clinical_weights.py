"""Made-up weights of the clinical scorers in their published layout, the same on every machine, and texts to score."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

PREDICTIONS = [
    "Small left pleural effusion. No pneumothorax.",
    "The heart is enlarged. Lungs are clear.",
    "No acute process.",
    "",
    "Right lower lobe consolidation has worsened.",
]
REFERENCES = [
    "There is a small left pleural effusion. There is no pneumothorax.",
    "Mild cardiomegaly. The lungs are clear.",
    "No acute cardiopulmonary process.",
    "Stable mild edema.",
    "Worsening consolidation in the right lower lobe, new effusion.",
]


def fill(module: nn.Module, seed: int, scale: float = 0.3) -> None:
    """The same numbers for the same seed, in the order of the names; norms stay as they are and biases are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.named_parameters()):
            if name.endswith("bias"):
                value.zero_()
            elif "LayerNorm" not in name:
                value.copy_(torch.randn(value.shape, generator=generator) * scale)


def make_chexbert(folder: Path) -> Path:
    """`chexbert.pth` with the key names of the published file, a small vocabulary and its config."""
    from hf_medvlm.models.tiny import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([*PREDICTIONS, *REFERENCES], vocab_size=200)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    config.save_pretrained(folder)
    bert = BertModel(config)
    heads = nn.ModuleList([nn.Linear(32, 4) for _ in range(13)] + [nn.Linear(32, 2)])
    fill(bert, 1)
    fill(heads, 2, scale=1.0)
    state = {f"module.bert.{key}": value for key, value in bert.state_dict().items()}
    state |= {f"module.linear_heads.{key}": value for key, value in heads.state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": state}, folder / "chexbert.pth")
    return folder


def make_roberta(folder: Path) -> Path:
    """A tiny RoBERTa of six layers with a byte-level tokenizer, saved as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=126, unk_token="<unk>", **names)
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
    model = RobertaModel(
        RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=128, pad_token_id=1, **sizes)
    )
    fill(model, 3)
    model.save_pretrained(folder)
    return folder
