"""Studies -> batches of pairs for the dual encoders: one frontal image, the report's tokens, and which reports are
the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import ProcessorMixin

from hf_medvlm.collators.pixels import read_pixels
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.language.sections import sentences


def same_text(text: str) -> str:
    """What two texts must share to be the same report: the words, whatever the case and the white space."""
    return " ".join(text.lower().split())


def pair_id(text: str) -> int:
    """A number of 63 bits for `same_text`: the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(same_text(text).encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class PairCollator:
    """Reads the frontal image, tokenises the report, marks repeated reports.

    Args:
        processor: image processor and tokenizer of the dual encoder.
        image_folder: what `StudyImage.path` is relative to.
        sections: the parts of the study that are the text, as `Study.text` takes them.
        max_length: tokens of a text at most; longer ones are cut. Batches are padded to their longest text, not to
            this.
        training: augment the images.
        sentence_share: share of the texts of which one random sentence is taken, as ConVIRT does (Zhang et al. 2020,
            arXiv 2010.00747): what a report says of one finding is then learnt by itself. For training alone.

    Example: three studies, the last two with one and the same report, pad id 0, give
        `pixel_values` (3, 3, H, W), `input_ids` [[2, 7, 9, 3], [2, 7, 3, 0], [2, 7, 3, 0]],
        `attention_mask` [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]], `pair_ids` [81, 22, 22].
    """

    processor: ProcessorMixin
    image_folder: str | Path
    sections: str | tuple[str, ...] = ALL_TEXT
    max_length: int = 256
    training: bool = False
    seed: int = 0
    sentence_share: float = 0.0

    def text(self, study: Study) -> str:
        """The whole text that the image is paired with."""
        return study.text(self.sections)

    def _text(self, row: Row) -> str:
        """It, or a sentence of it."""
        text = self.text(row.study)
        if self.sentence_share:
            rng = row.rng(self.seed + 2)  # not the numbers that the augmentation draws
            if rng.random() < self.sentence_share:
                return str(rng.choice(sentences(text) or [text]))
        return text

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (number of texts, T), padded on the right to the longest."""
        batch = self.processor.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=min(self.max_length, self.processor.tokenizer.model_max_length),
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def __call__(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        rows = as_rows(items)
        texts = [self._text(row) for row in rows]
        pairs = torch.tensor([pair_id(text) for text in texts])
        return self.images(rows) | self.tokenize(texts) | {"pair_ids": pairs}

    def images(self, rows: list[Row]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W) of the frontal images, and what else the image processor gives beside them."""
        images = [(row, row.study.frontal) for row in rows]
        processor = self.processor.image_processor
        return read_pixels(images, self.image_folder, processor, self.training, self.seed)
