"""Evaluation of any chat model: one reading of the pixels for loss and prompts, stop ids of its generation config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_medvlm.data.rows import Row
from hf_medvlm.evaluation.text import SHOWN_STUDIES
from hf_medvlm.families.chat.evaluation import ChatEvaluation
from hf_medvlm.families.chat.message_collator import MessageCollator
from hf_medvlm.families.chat.processors import stop_ids


@dataclass
class MessageEvaluation(ChatEvaluation):
    """`ChatEvaluation` with a `MessageCollator`."""

    collator: MessageCollator

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self.collator.with_prompts(rows))
        if self.look is not None:
            shown = [row.index < SHOWN_STUDIES for row in rows]
            batch["shown"] = torch.tensor(shown)
            # which pixels are a row's, each family says in its own way: those that are shown are encoded by themselves
            batch["alone"] = {str(i): self.collator.prompts([row]) for i, row in enumerate(rows) if shown[i]}
        return batch

    def prompts_of(self, batch: dict[str, Any], row: int) -> tuple[Mapping[str, Tensor], int]:
        return batch["alone"][str(row)], 0

    def stop_ids(self, model: nn.Module) -> list[int]:
        return list(stop_ids(self.collator.processor, getattr(model, "generation_config", None)))
