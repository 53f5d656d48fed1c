"""Training throughput of a captioner: ours against the usual script, the same model, studies, batch and steps.

    python benchmarks/captioning.py [--steps 60] [--batch 32] [--size published]

The usual script is the stock Trainer over a map-style data set that tokenises to `padding="max_length"`, as the
fine-tuning tutorials of BLIP do. Both read the same PNG files, in the main process, without augmentation. The two run
in turn, three times, and the first steps are not counted; the ratio is the median of the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.load import Splits, load_splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.families.captioners.collator import CaptionCollator
from hf_medvlm.families.captioners.model import BlipCaptioner
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.trainer import MedVLMTrainer

MAX_LENGTH = 128
WARM_UP = 3


class UsualDataset(torch.utils.data.Dataset):
    """An image-text pair an item, padded to the maximum, labels equal to the ids: what most scripts do."""

    def __init__(self, splits: Splits, processor: Any) -> None:
        self.splits, self.processor = splits, processor

    def __len__(self) -> int:
        return len(self.splits.train)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        study = self.splits.train[index]
        image = open_radiograph(self.splits.image_folder / study.frontal.path).convert("RGB")
        item = self.processor(
            images=image,
            text=study.text(),
            padding="max_length",
            max_length=MAX_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        item = {key: value.squeeze(0) for key, value in item.items()}
        return item | {"labels": item["input_ids"]}


def make_model(tokenizer: Any, size: str) -> BlipCaptioner:
    if size == "tiny":
        return BlipCaptioner.tiny(tokenizer)
    return BlipCaptioner(BlipConfig(text_config={"vocab_size": 30524}))


def arguments(kind: type, batch: int, steps: int, folder: str, workers: int) -> Any:
    return kind(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        save_strategy="no",
        eval_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=workers,
        logging_steps=10**6,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        seed=0,
    )


class Clock(TrainerCallback):
    """When the steps behind the warm-up begin."""

    start, first = 0.0, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == min(WARM_UP, state.max_steps - 1):
            _settle()
            self.start, self.first = time.perf_counter(), state.global_step


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(trainer: Trainer, steps: int) -> float:
    """Of `steps` steps, from those behind the warm-up."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    _settle()
    return (time.perf_counter() - clock.start) * steps / (steps - clock.first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", choices=["tiny", "published"], default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument(
        "--workers", type=int, default=0, help="of both data loaders; by default the main process reads"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    splits = load_splits(synthetic_studies=options.studies, synthetic_size=128)
    tokenizer = train_tokenizer(study.text() for study in splits.train)
    processor = BlipCaptioner.tiny_processor(tokenizer, 96 if options.size == "tiny" else 384)
    pairs = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = make_model(tokenizer, options.size)
            stock = BlipForConditionalGeneration(model.config)
            stock.load_state_dict(model.state_dict())
            collator = CaptionCollator(
                processor, splits.image_folder, model.first_token(model.config), max_length=MAX_LENGTH
            )
            ours = MedVLMTrainer(
                model=model,
                args=arguments(MedVLMArguments, options.batch, options.steps, folder, options.workers),
                data_collator=collator,
                train_dataset=StudyRows(splits.train),
            )
            usual = Trainer(
                model=stock,
                args=arguments(TrainingArguments, options.batch, options.steps, folder, options.workers),
                train_dataset=UsualDataset(splits, processor),
            )
            taken = seconds(ours, options.steps)
            torch.backends.cuda.enable_cudnn_sdp(True)  # torch's own choice, which our trainer changed
            pairs.append((taken, seconds(usual, options.steps)))
    studies = options.steps * options.batch
    for name, place in (("hf_medvlm", 0), ("usual script", 1)):
        print(f"{name:<14} {studies / statistics.median(pair[place] for pair in pairs):8.1f} samples/s")
    ratio = statistics.median(usual / ours for ours, usual in pairs)
    print(f"{'ratio':<14} {ratio:8.2f}")
    if options.json:
        rates = [studies / statistics.median(pair[place] for pair in pairs) for place in (0, 1)]
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
        print(
            json.dumps({"images_per_second": rates[0], "usual": rates[1], "ratio": ratio, "memory_gib_of_both": peak})
        )


if __name__ == "__main__":
    main()
