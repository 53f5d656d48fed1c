"""`WriterPredictor`: what captioners and chat models share when they are asked where they looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_medvlm.evaluation.attention import MEANING, phrase_maps, written_findings
from hf_medvlm.inference.predictor import Predictor


class WriterPredictor(Predictor):
    """A model that writes, and shows where it looked for the findings that it wrote of."""

    map_meaning = MEANING

    def look(self, model: Any, prompts: Mapping[str, Tensor], row: int, ids: Tensor) -> Tensor:
        """The family's `WordAttention`."""
        raise TypeError(f"{type(self).__name__} must define look")

    def shown_phrases(self, described: Mapping[str, Any], most: int) -> list[str]:
        return written_findings(described["prediction"])[:most]

    def locate(self, batch: dict[str, Any], phrases: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
        """Where it looks when it writes the phrase and nothing else."""
        return self.locate_written(batch, phrases, [""] * len(phrases))

    def locate_written(
        self, batch: dict[str, Any], phrases: Sequence[Sequence[str]], texts: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        tokenizer = self.evaluation.tokenizer  # type: ignore[attr-defined]
        return [
            phrase_maps(self.look, self.model, tokenizer, batch["prompts"], row, text, asked)
            for row, (text, asked) in enumerate(zip(texts, phrases, strict=True))
        ]
