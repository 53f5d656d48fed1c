"""How alike the sentences of radiology reports are to a CXR-BERT: for paraphrases and contradictions (NLI).

Bannur et al. 2023 (arXiv 2301.04558); `metrics/sentence_pairs.py` holds the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_medvlm.families.biovil_t.cxr_bert import CXRBertModel
from hf_medvlm.families.biovil_t.model import BioViLTModel


@torch.no_grad()
def sentence_similarity(
    model: BioViLTModel | CXRBertModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    batch_size: int = 64,
) -> Tensor:
    """Cosine of the projected embeddings of each pair's two sentences, (N,), on the CPU.

    Raises:
        ValueError: no pairs, or a sentence without a word.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each once: a sentence is in several pairs
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"{len(pairs)} pairs of sentences, of which each must hold words")
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        tokens = tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(device)
        parts.append(model.get_projected_text_embeddings(tokens["input_ids"], tokens["attention_mask"]).cpu())
    embeddings, place = torch.cat(parts).float(), {text: number for number, text in enumerate(texts)}
    first, second = (embeddings[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    return (first * second).sum(-1)
