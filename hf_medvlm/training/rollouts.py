"""Texts that a model writes while it trains: sampled in batches with cached keys, the same ones in any number of
processes and in a run that was resumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from hf_medvlm.data.rows import Row
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.training.encode_once import encode_once

BELOW_ONE = 1 - 2**-24  # the largest draw that float32 holds


@dataclass
class RolloutCollator:
    """Prompts, and the rows that they are of: the texts come from the model.

    Args:
        prompts: makes the prompts of rows.
        reports: makes the batch of supervised training of them, where their own reports are learnt from too; they are
            then handed on as `reports`, and the prompts are cut from them.
    """

    prompts: Callable[[list[Row]], dict[str, Tensor]]
    reports: Callable[[list[Row]], dict[str, Tensor]] | None = None

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        if self.reports is None:
            return {"rows": rows, **self.prompts(rows)}
        batch = self.reports(rows)
        start = int((batch["labels"][0] != IGNORE_INDEX).long().argmax())  # one prompt for all
        prompt = {name: batch[name][:, :start] for name in ("input_ids", "attention_mask")}
        reports = {name: batch.pop(name) for name in FILLS}
        return {"rows": rows, **batch, **prompt, "reports": reports}


FILLS = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE_INDEX}
"""What a batch holds of each text, and what stands behind the end of a shorter one."""


def join_reports(texts: dict[str, Tensor], reports: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sampled texts of each study (`sample`, with `advantages`) and, behind them, its own report.

    Args:
        texts: (S * G, ...). reports: `input_ids`, `attention_mask` and `labels` (S, T) of supervised training.

    Returns:
        the same of (S * (G + 1), ...), and `supervised` (S * (G + 1),), whether a text is the study's own report.
    """
    studies = len(reports["labels"])
    width = max(texts["labels"].shape[1], reports["labels"].shape[1])

    def joined(sampled: Tensor, report: Tensor) -> Tensor:
        return torch.cat((sampled.unflatten(0, (studies, -1)), report[:, None]), 1).flatten(0, 1)

    def padded(value: Tensor, to: int, fill: int = 0) -> Tensor:
        return F.pad(value, (0, to - value.shape[1]), value=fill)

    batch = {name: joined(*(padded(x[name], width, fill) for x in (texts, reports))) for name, fill in FILLS.items()}
    log_probs = padded(texts["sampled_log_probs"], width - 1)
    batch["sampled_log_probs"] = joined(log_probs, log_probs.new_zeros(studies, width - 1))
    batch["advantages"] = joined(texts["advantages"], texts["advantages"].new_zeros(studies))
    sampled = torch.zeros(len(texts["labels"]), dtype=torch.bool, device=log_probs.device)
    batch["supervised"] = joined(sampled, sampled.new_ones(studies))
    return batch


def draw_numbers(rows: Sequence[Row], samples: int, length: int, seed: int, step: int) -> Tensor:
    """(rows * samples, length) numbers in [0, 1): a function of seed, step, study, sample and place alone."""
    drawn = [
        np.random.default_rng([seed, step, zlib.crc32(row.study.study_id.encode())]).random((samples, length))
        for row in rows
    ]
    return torch.from_numpy(np.concatenate(drawn)).clamp(max=BELOW_ONE).float()


class SeededSampling(LogitsProcessor):
    """Makes greedy search sample: of each distribution it leaves the token that a given number falls on.

    `generate(do_sample=True)` draws from one generator for the whole batch, so that a text would depend on the texts
    beside it, and on how many processes there are.

    Args:
        draws: (R, L) numbers in [0, 1), one for each text and place.
        start: tokens of the prompt.
        temperature: the logits are divided by it.
    """

    def __init__(self, draws: Tensor, start: int, temperature: float) -> None:
        self.draws, self.start, self.temperature = draws, start, temperature
        self.log_probs = torch.zeros_like(draws)
        """(R, L): of the tokens chosen so far."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self.start
        log_probs = (scores.float() / self.temperature).log_softmax(-1)
        cumulative = log_probs.exp().cumsum(-1)
        number = self.draws[:, place, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, number, right=True).clamp(max=scores.shape[-1] - 1)
        self.log_probs[:, place] = log_probs.gather(1, chosen)[:, 0]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def sample(
    model: Any, prompts: dict[str, Tensor], draws: Tensor, temperature: float, stop_ids: Sequence[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Several texts a study.

    Args:
        prompts: what `generate` takes, one row a study. draws: (B * G, L), see `draw_numbers`.

    Returns:
        `input_ids`, `attention_mask`, `labels` (B * G, T) and `sampled_log_probs` (B * G, T - 1), what follows the end
        of a text masked; and `generated` (B * G, T - P) ids without the prompt of P tokens.
    """
    start, samples = prompts["input_ids"].shape[1], len(draws) // len(prompts["input_ids"])
    sampling = SeededSampling(draws, start, temperature)
    pictures = torch.arange(len(prompts["input_ids"]), device=draws.device).repeat_interleave(samples)
    with encode_once(model, pictures):
        ids = model.generate(
            **{name: value.repeat_interleave(samples, 0) for name, value in prompts.items()},
            max_new_tokens=draws.shape[1],
            num_beams=1,
            do_sample=False,
            use_cache=True,
            logits_processor=[sampling],
        )
    generated = ids[:, start:]
    stops = torch.isin(generated, torch.tensor(stop_ids, device=ids.device))
    written = stops.cumsum(1) - stops.long() == 0  # up to the first stop, which belongs to the text
    mask = torch.cat((prompts["attention_mask"].repeat_interleave(samples, 0), written.long()), 1)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, start:] = generated.masked_fill(~written, IGNORE_INDEX)
    log_probs = torch.zeros(len(ids), ids.shape[1] - 1, device=ids.device)
    log_probs[:, start - 1 :] = sampling.log_probs[:, : generated.shape[1]] * written
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "sampled_log_probs": log_probs}
    return batch, generated
