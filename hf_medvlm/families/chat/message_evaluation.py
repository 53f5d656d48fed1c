"""Evaluation of any chat model: one reading of the pixels for loss and prompts, stop ids of its generation config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_medvlm.data.rows import Row
from hf_medvlm.families.chat.evaluation import ChatEvaluation
from hf_medvlm.families.chat.message_collator import MessageCollator
from hf_medvlm.families.chat.processors import stop_ids


@dataclass
class MessageEvaluation(ChatEvaluation):
    """`ChatEvaluation` with a `MessageCollator`."""

    collator: MessageCollator

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return self.collator.with_prompts(rows)

    def stop_ids(self, model: nn.Module) -> list[int]:
        return list(stop_ids(self.collator.processor, getattr(model, "generation_config", None)))
