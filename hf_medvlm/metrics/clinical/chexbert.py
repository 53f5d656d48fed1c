"""CheXbert: F1 of the 14 CheXpert findings that a BERT reads in both texts, and the cosine of its embeddings.

Smit et al. 2020, "CheXbert" (arXiv 2004.09167): bert-base-uncased, 13 heads of four classes (not mentioned, present,
absent, uncertain) and one of two for No Finding, on the first token. The embedding similarity ("SembScore") is part of
RadCliQ: Yu et al. 2023 (doi 10.1016/j.patter.2023.100802).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import WeightsInFolder
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs
from hf_medvlm.metrics.clinical.weights import default_device, find_file, read_pickled_weights

FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""In the order of the heads."""
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
PRESENT, UNCERTAIN = 1, 3
FOLDERS, FILES = ("chexbert", "RRG_scorers"), ("chexbert.pth",)
TOKENIZERS = ("tokenizer.json", "vocab.txt")
HEAD_SIZE, MAX_TOKENS = 64, 512
SHARED = (
    "CheXbert labels of both texts; {}; a finding on neither side counts as 0 in the macro mean, as scikit-learn does"
)
POLICIES = {"": "uncertain counts as present, as in F1CheXbert", "_uncertain_negative": "uncertain counts as absent"}


def locate(weights: str | Path | None) -> tuple[Path, Path]:
    """`chexbert.pth` and its tokenizer's file.

    Raises:
        MissingWeights: one of them is not there.
    """
    path = find_file(weights, FOLDERS, FILES, "CheXbert")
    places = ("bert-base-uncased", "../bert-base-uncased", "tokenizer")
    return path, find_file(path.parent, places, TOKENIZERS, "CheXbert's tokenizer (bert-base-uncased)")


class CheXbert:
    """The labeller, read from `chexbert.pth` as published and a BERT tokenizer beside it.

    Args:
        weights: folder with `chexbert.pth` (or its parent), and `vocab.txt` or `tokenizer.json` of bert-base-uncased
            beside it or in `bert-base-uncased/`.
        device: "cpu", "cuda", ...; a GPU where there is one by default.
        batch_size: texts at a time.

    Raises:
        MissingWeights: a file is not there.
        ValueError: the file cannot be read, or holds other weights.
    """

    def __init__(self, weights: str | Path | None, device: str | None = None, batch_size: int = 64) -> None:
        from transformers import AutoTokenizer

        path, vocabulary = locate(weights)
        self.device, self.batch_size = default_device(device), batch_size
        self.bert, self.heads = _build(path, vocabulary.parent / "config.json", self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(
            vocabulary.parent, local_files_only=True, trust_remote_code=False
        )

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Classes (N, 14), 0 to 3, and embeddings (N, width) of the first token, float32."""
        import torch

        classes, embeddings = [], []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=min(MAX_TOKENS, self.bert.config.max_position_embeddings),
                return_tensors="pt",
            )
            inputs = {key: batch[key].to(self.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                first = self.bert(**inputs).last_hidden_state[:, 0]
                classes.append(torch.stack([head(first).argmax(1) for head in self.heads], dim=1).cpu().numpy())
            embeddings.append(first.float().cpu().numpy())
        if not classes:
            return np.zeros((0, len(FINDINGS)), int), np.zeros((0, self.bert.config.hidden_size), np.float32)
        return np.concatenate(classes), np.concatenate(embeddings)


def _build(path: Path, config_file: Path, device: Any) -> tuple[Any, Any]:
    """BERT and the 14 heads with the published weights; sizes from `config_file` where there is one, else by shape."""
    import torch
    from transformers import BertConfig, BertModel

    content = read_pickled_weights(path)
    state = {key.removeprefix("module."): value for key, value in content.get("model_state_dict", content).items()}
    words = state.get("bert.embeddings.word_embeddings.weight")
    if words is None or f"linear_heads.{len(FINDINGS) - 1}.weight" not in state:
        raise ValueError(f"{path} is no CheXbert checkpoint: it lacks bert.* or linear_heads.0 to {len(FINDINGS) - 1}")
    if config_file.is_file():
        config = BertConfig.from_json_file(config_file)
    else:
        config = BertConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            num_attention_heads=max(words.shape[1] // HEAD_SIZE, 1),
            num_hidden_layers=len({key.split(".")[3] for key in state if key.startswith("bert.encoder.layer.")}),
            intermediate_size=state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
        )
    bert = BertModel(config)
    heads = torch.nn.ModuleList(
        torch.nn.Linear(config.hidden_size, 2 if name == "No Finding" else 4) for name in FINDINGS
    )
    for module, prefix in ((bert, "bert."), (heads, "linear_heads.")):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        part.pop("embeddings.position_ids", None)  # a buffer that older transformers saved
        try:
            module.load_state_dict(part, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit CheXbert: {' '.join(str(error).split())[:300]}") from error
    return bert.eval().to(device), heads.eval().to(device)


def embedding_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row (N, D), (N, D) -> (N,); 0 where a row is 0."""
    dots = np.einsum("nd,nd->n", first, second)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)


def label_f1(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Micro and macro F1 and that of each column, of two boolean arrays (N, C); 0 where nothing is to divide by."""
    hits, both = (predicted & true).sum(0), predicted.sum(0) + true.sum(0)
    each = np.divide(2 * hits, both, out=np.zeros(len(hits)), where=both > 0)
    micro = 2 * hits.sum() / both.sum() if both.sum() else 0.0
    return float(micro), float(each.mean()), each


def score(
    predictions: Sequence[str], references: Sequence[str], weights: str | Path | None, device: str | None = None
) -> ClinicalResult:
    """`chexbert_f1_{micro,macro}_{14,5}`, with uncertain as present and (`_uncertain_negative`) as absent, each
    finding's `chexbert_f1/<finding>`, and `sembscore`.

    Raises:
        MissingWeights, ValueError: as `CheXbert`; and where the texts are not in pairs.
    """
    check_pairs(predictions, references)
    labeller, result = CheXbert(weights, device), ClinicalResult()
    classes, embeddings = labeller([*predictions, *references])
    count = len(predictions)
    five = [FINDINGS.index(name) for name in FIVE]
    for suffix, policy in POLICIES.items():
        positive = np.isin(classes, (PRESENT, UNCERTAIN)) if not suffix else classes == PRESENT
        sides = positive[:count], positive[count:]
        for columns, size in ((list(range(len(FINDINGS))), 14), (five, 5)):
            micro, macro, each = label_f1(*(side[:, columns] for side in sides))
            how = f"{SHARED.format(policy)}; {size} findings"
            result.add(f"chexbert_f1_micro_{size}{suffix}", micro if count else np.nan, f"{how}, pooled")
            result.add(f"chexbert_f1_macro_{size}{suffix}", macro if count else np.nan, f"{how}, mean of theirs")
            if size == 14 and not suffix:
                for name, value in zip(FINDINGS, each, strict=True):
                    result.add(f"chexbert_f1/{name}", value if count else np.nan, f"{how}, this one alone")
        if not suffix:
            agree = (sides[0] == sides[1]).mean(1) if count else []
            how = f"share of the 14 findings of one study on which both texts agree; {policy}"
            result.add("chexbert_agreement", np.mean(agree) if count else np.nan, how, agree)
    similar = embedding_similarity(embeddings[:count], embeddings[count:])
    how = "cosine of CheXbert's embeddings (first token) of both texts, mean over studies (SembScore)"
    result.add("sembscore", similar.mean() if count else np.nan, how, similar, unit="cosine")
    return result


class Metric(WeightsInFolder, evaluate.Metric):
    """`metrics.load("chexbert", weights=FOLDER).compute(predictions=texts, references=texts)`, as in `score`."""

    default_name = "chexbert"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.weights, self.device)
        values = result.values
        if self.config_name == "sembscore":
            values = {name: value for name, value in values.items() if name == "sembscore"}
        return values | {"protocol": "; ".join(dict.fromkeys(result.facts[name].protocol for name in values))}
