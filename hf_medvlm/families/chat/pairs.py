"""Pairs of reports of one study, a better and a worse one: read from a file, or written by the model and ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_medvlm.data.fields import id_text
from hf_medvlm.data.files import atomic_open, open_text, read_json
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Evaluation
from hf_medvlm.families.chat.message_evaluation import MessageEvaluation
from hf_medvlm.rewards.reward import Reward
from hf_medvlm.training.rollouts import draw_numbers, sample


@dataclass(frozen=True)
class Pair:
    """Two reports of one study."""

    study_id: str
    chosen: str
    rejected: str


def read_pairs(path: str | Path, studies: Sequence[Study]) -> list[Pair]:
    """The pairs of a JSONL file, one object a line with `study_id`, `chosen` and `rejected`.

    Raises:
        ValueError: no such file, a line that is no such object, a study that is not among `studies`, equal texts, or no
            pair at all; the message names file and line.
    """
    known, pairs = {study.study_id for study in studies}, []
    with open_text(path) as handle:
        lines = list(handle)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = read_json(line, path, number)
        texts = [record.get(side) for side in ("chosen", "rejected")] if isinstance(record, Mapping) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{where}: a pair has study_id, chosen and rejected, each a text that is not empty")
        try:
            pair = Pair(id_text(record.get("study_id"), "study_id"), *texts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if pair.study_id not in known:
            raise ValueError(f"{where}: study {pair.study_id!r:.100} is not among the {len(known)} training studies")
        if pair.chosen.strip() == pair.rejected.strip():
            raise ValueError(f"{where}: chosen and rejected are the same text")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"--pairs {path}: no pair in it")
    return pairs


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """As `read_pairs` reads them."""
    with atomic_open(path) as handle:
        for pair in pairs:
            handle.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


def rank(texts: Sequence[Sequence[str]], studies: Sequence[Study], reward: Reward) -> list[Pair]:
    """The best and the worst text of each study; none where all are worth the same.

    Args:
        texts: several of each study.
    """
    pairs = []
    for written, study in zip(texts, studies, strict=True):
        worth = reward(written, [study] * len(written)).total
        best, worst = int(worth.argmax()), int(worth.argmin())
        if worth[best] > worth[worst]:
            pairs.append(Pair(study.study_id, written[best].strip(), written[worst].strip()))
    return pairs


@dataclass
class SampledReports(Evaluation):
    """Several reports of each study, as `MedVLMTrainer.predict_rows` has them written in all processes.

    Args:
        evaluation: whose prompts, lengths and stop ids they have. samples: of each study.
    """

    evaluation: MessageEvaluation
    samples: int
    temperature: float
    seed: int

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        repeated = [row for row in rows for _ in range(self.samples)]
        numbers = draw_numbers(rows, self.samples, self.evaluation.max_new_tokens, self.seed, step=0)
        return {"prompts": self.evaluation.collator.prompts(repeated), "numbers": numbers}

    def predict(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`generated` (B, samples, L), padded with the tokenizer's padding."""
        numbers, stops = batch["numbers"], self.evaluation.stop_ids(model)
        _, ids = sample(model, batch["prompts"], numbers, self.temperature, stops)
        padded = ids.new_full(tuple(numbers.shape), self.evaluation.tokenizer.pad_token_id)
        padded[:, : ids.shape[1]] = ids
        return {"generated": padded.view(-1, self.samples, numbers.shape[1])}

    def texts(self, outputs: dict[str, list[np.ndarray]]) -> list[list[str]]:
        """The texts of `predict_rows`."""
        return [[self.evaluation.text_of(ids) for ids in written] for written in outputs["generated"]]


def conversation_of(evaluation: MessageEvaluation, study: Study) -> list[dict[str, Any]]:
    """The messages of a study up to its last answer, with marks in place of the images."""
    return evaluation.collator.messages(study)[:-1]


def answer(text: str) -> list[dict[str, Any]]:
    """A text as the last turn of a conversation."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
