"""How much of the bare model's speed the feature extractor keeps, and what decoding beside the model is worth.

    OMP_NUM_THREADS=2 python benchmarks/features.py [--studies 64] [--image_size 448] [--tiny]

Three things are timed over the same studies in the same batches, in turn, `--repeats` times each:
    model       the forward alone, on batches that lie ready in memory: the most that can be had
    extractor   `extract_features`: decode, stretch, resize, forward, write shards
    one by one  the usual way: decode a batch, then run it, then decode the next
By default the model has the published sizes (ResNet-50 at 448 pixels, BERT-base) and random weights.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_medvlm.data.load import load_splits
from hf_medvlm.families.biovil_t.collator import PriorCollator, find_priors
from hf_medvlm.families.biovil_t.config import BioViLTConfig
from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig
from hf_medvlm.families.biovil_t.features import FeatureOptions, extract_features, features_of
from hf_medvlm.families.biovil_t.model import BioViLTModel
from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor, BioViLTProcessor
from hf_medvlm.models.tiny import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="the recipes' tiny model")
    options = parser.parse_args()
    torch.manual_seed(0)
    splits = load_splits(synthetic_studies=2 * options.studies, synthetic_size=512, verify_images=False)
    tokenizer = train_tokenizer(study.text() for study in splits.train)
    if options.tiny:
        model = BioViLTModel.tiny(tokenizer)
    else:
        model = BioViLTModel(BioViLTConfig(text_config=CXRBertConfig()))
    model = model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu").eval()
    size = options.image_size
    processor = BioViLTProcessor(BioViLTImageProcessor(size * 8 // 7, size), tokenizer)
    every = [study for studies in splits.studies.values() for study in studies]
    studies = splits.train[: options.studies]
    collator = PriorCollator(processor, splits.image_folder, max_length=128, priors=find_priors(every))
    features = FeatureOptions(batch_size=options.batch_size, shard_size=options.batch_size)
    groups = [studies[i : i + options.batch_size] for i in range(0, len(studies), options.batch_size)]
    ready = [{k: v.to(model.device) for k, v in collator(group).items()} for group in groups]

    @torch.inference_mode()
    def bare() -> None:
        for batch in ready:
            features_of(model, batch, features)

    def extractor() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract_features(model, collator, studies, Path(folder), features)

    @torch.inference_mode()
    def one_by_one() -> None:
        for group in groups:
            features_of(model, {k: v.to(model.device) for k, v in collator(group).items()}, features)

    ways: dict[str, Callable[[], None]] = {"model": bare, "extractor": extractor, "one by one": one_by_one}
    times: dict[str, list[float]] = {name: [] for name in ways}
    bare()  # warm
    for _ in range(options.repeats):
        for name, way in ways.items():
            times[name].append(timed(way))
    best = {name: min(values) for name, values in times.items()}
    print(
        f"{len(studies)} studies of {size} px, batches of {options.batch_size}, {model.device}, {os.cpu_count()} cores"
    )
    for name, seconds in best.items():
        print(
            f"{name:>11} {len(studies) / seconds:8.2f} studies/s  {100 * best['model'] / seconds:5.1f} % of the model"
        )


def timed(way: Callable[[], None]) -> float:
    """Seconds that `way` takes, the accelerator's queue included."""
    start = time.perf_counter()
    way()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
