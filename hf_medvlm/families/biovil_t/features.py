"""Features of a whole corpus, written in shards: batched, resumable after any kind of death, the same to the bit.

A shard is a safetensors file of `shard_size` studies, in the order of the corpus, that is there whole or not at all.
Its batches never reach into the next shard, so that a run that was killed and started again computes the very batches
of one that was not. Reading the images of the next batches goes on in other processes while the model is at work.

Knows no training. The model is a `BioViLTModel`, the collator a `PriorCollator`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_medvlm.data.files import atomic_open, write_json
from hf_medvlm.data.locks import release, take
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.families.biovil_t.collator import PriorCollator
from hf_medvlm.families.biovil_t.model import BioViLTModel

KINDS = ("image", "patch", "text")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INDEX, SETTINGS = "index.json", "settings.json"


@dataclass(frozen=True)
class FeatureOptions:
    """What is written, and in which portions.

    Args:
        kinds: "image" (`img_embedding` (F,), `projected_global_embedding` (D,)), "patch" (`projected_patch_embeddings`
            (D, h, w)), "text" (`text_embedding` (D,)); all as the model gives them, not normalised.
        batch_size: studies at once; shard_size: studies a file, a multiple of it.
        dtype: of the numbers on disk.
        workers: processes that read images; 0 reads them between the batches.
    """

    kinds: tuple[str, ...] = KINDS
    batch_size: int = 16
    shard_size: int = 1024
    dtype: str = "float32"
    workers: int = 1

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"features are {', '.join(KINDS)}; got {', '.join(unknown) or 'none'}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {self.dtype!r:.100}")
        if self.batch_size < 1 or self.shard_size < 1 or self.shard_size % self.batch_size:
            raise ValueError(
                f"shard_size must be a multiple of batch_size, got {self.shard_size} and {self.batch_size}: a batch "
                "that reached into the next shard would change with the place where a run is resumed"
            )


def extract_features(
    model: BioViLTModel,
    collator: PriorCollator,
    studies: Sequence[Study],
    folder: str | Path,
    options: FeatureOptions | None = None,
) -> Path:
    """Write the features of `studies` into `folder`, or what is missing there; return the path of `index.json`.

    In several processes each writes its own shards. `read_features` reads them back.

    Raises:
        ValueError: the folder holds features of other weights, studies or options, or another run writes to it.
    """
    options, folder, state = options or FeatureOptions(), Path(folder), PartialState()
    shards = [range(i, min(i + options.shard_size, len(studies))) for i in range(0, len(studies), options.shard_size)]
    with state.main_process_first():
        if state.is_main_process:
            take(folder, "; run it again when that has ended, or name another folder")
        _check_settings(folder, _settings(model, collator, studies, options))
    mine = [n for n in range(len(shards)) if n % state.num_processes == state.process_index]
    missing = [number for number in mine if not shard_path(folder, number).exists()]
    batches = [
        list(shards[number])[start : start + options.batch_size]
        for number in missing
        for start in range(0, len(shards[number]), options.batch_size)
    ]
    model = model.to(state.device).eval()
    outputs = _forward(model, collator, studies, batches, options)
    for number in missing:
        size, parts = len(shards[number]), []
        while size > 0:
            parts.append(next(outputs))
            size -= len(parts[-1]["has_previous"])
        # convolutions may hand on other strides, which safetensors does not take
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        ids = json.dumps([studies[i].study_id for i in shards[number]])
        with atomic_open(shard_path(folder, number), "wb") as handle:
            handle.write(save(tensors, {"study_ids": ids}))
    state.wait_for_everyone()
    if state.is_main_process:
        names = [shard_path(folder, number).name for number in range(len(shards))]
        write_json(folder / INDEX, {"shards": names, "studies": len(studies)})
        release(folder)
    state.wait_for_everyone()
    return folder / INDEX


def read_features(folder: str | Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(study_id, its features) of each study, in the order of the corpus.

    Raises:
        ValueError: the folder holds no finished extraction.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: no {INDEX}; the extraction has not ended, run it again to go on")
    for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]:
        with safe_open(folder / name, framework="pt") as shard:
            ids = json.loads(shard.metadata()["study_ids"])
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118, it is no mapping
        for place, study_id in enumerate(ids):
            yield study_id, {key: tensor[place] for key, tensor in tensors.items()}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.safetensors"


@torch.inference_mode()
def _forward(
    model: BioViLTModel,
    collator: PriorCollator,
    studies: Sequence[Study],
    batches: list[list[int]],
    options: FeatureOptions,
) -> Iterator[dict[str, Tensor]]:
    """Features of each batch, in order, on the CPU."""
    rows: Any = StudyRows(studies)
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
    )
    hidden = not PartialState().is_main_process
    for batch in tqdm(loader, "Extracting", unit="batch", disable=True if hidden else None):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        tensors = {name: value.to(DTYPES[options.dtype]) for name, value in features_of(model, batch, options).items()}
        yield {name: value.cpu() for name, value in (tensors | {"has_previous": batch["has_previous"]}).items()}


def features_of(model: BioViLTModel, batch: dict[str, Tensor], options: FeatureOptions) -> dict[str, Tensor]:
    """The features of one batch, a row a study."""
    tensors = {}
    if "image" in options.kinds or "patch" in options.kinds:
        previous = [batch[name] for name in ("previous_pixel_values", "has_previous")] if model.config.temporal else []
        features: Any = model.get_image_features(batch["pixel_values"], *previous)
        if "image" in options.kinds:
            tensors["img_embedding"] = features.img_embedding
            tensors["projected_global_embedding"] = features.projected_global_embedding
        if "patch" in options.kinds:
            tensors["projected_patch_embeddings"] = features.projected_patch_embeddings
    if "text" in options.kinds:
        tensors["text_embedding"] = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    return tensors


def _settings(
    model: BioViLTModel, collator: PriorCollator, studies: Sequence[Study], options: FeatureOptions
) -> dict[str, object]:
    """All that the numbers depend on; the number of workers is none of it."""
    weights, data = hashlib.sha256(), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for study in studies:
        prior = collator.priors.get(study.study_id)
        images = [s.frontal.path for s in (study, prior) if s is not None and s.frontal is not None]
        data.update(json.dumps([study.study_id, images, collator.text(study)]).encode())
    processor = collator.processor.image_processor.to_dict()
    vocabulary = json.dumps(collator.processor.tokenizer.get_vocab(), sort_keys=True)
    return {
        "weights": weights.hexdigest(),
        "studies": data.hexdigest(),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "image_processor": {name: processor[name] for name in ("resize_size", "crop_size")},
        "max_length": collator.max_length,
        "features": list(options.kinds),
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "dtype": options.dtype,
    }


def _check_settings(folder: Path, settings: dict[str, object]) -> None:
    """Write the settings of a new folder; hold those of a begun one against ours, and clear half-written files away."""
    path = folder / SETTINGS
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in settings if begun.get(name) != settings[name]]
        if other:
            raise ValueError(
                f"{folder} holds features that were begun with other {', '.join(other)}; take another --output_dir, or "
                "the settings of settings.json"
            )
        if PartialState().is_main_process:
            for half in folder.glob(".*.part"):
                half.unlink()
    else:
        write_json(path, settings)
