"""`--dataset` -> studies in three splits, with what was left out and why. Pixels are read only to be sure of them."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_medvlm.data.images import ONE_GREY, find_broken
from hf_medvlm.data.quality import find_leakage, refuse_leakage, without_images
from hf_medvlm.data.sources.base import Rejected
from hf_medvlm.data.sources.table import read_table
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study, read_jsonl
from hf_medvlm.data.synthetic.studies import GENERATOR, make_studies
from hf_medvlm.labels import SPLITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The studies of a run.

    Args:
        studies: `train`, `validate`, `test` -> studies, in the order of the data set.
        image_folder: what their image paths are relative to.
        name: the data set's name, for the model card.
        rejected: what was left out.
    """

    studies: Mapping[str, Sequence[Study]]
    image_folder: Path
    name: str
    rejected: Sequence[Rejected] = field(default_factory=tuple)

    @property
    def train(self) -> Sequence[Study]:
        return self.studies["train"]

    @property
    def validate(self) -> Sequence[Study]:
        return self.studies["validate"]

    @property
    def test(self) -> Sequence[Study]:
        return self.studies["test"]

    def rejections(self) -> dict[str, int]:
        """Reason -> how many entries it kept out."""
        return dict(Counter(entry.reason for entry in self.rejected))


def cache_folder() -> Path:
    """Where made-up studies and exported images are kept: `$HF_MEDVLM_CACHE`, or `~/.cache/hf_medvlm`."""
    return Path(os.environ.get("HF_MEDVLM_CACHE", "~/.cache/hf_medvlm")).expanduser()


def load_splits(
    dataset: str = "synthetic",
    image_folder: str | Path | None = None,
    image_column: str = "image",
    text_columns: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    verify_images: bool = True,
    synthetic_studies: int = 2000,
    synthetic_size: int = 128,
    train_studies: int | None = None,
    eval_studies: int | None = None,
) -> Splits:
    """Studies of `--dataset` (see `DataArguments` for the options).

    `synthetic` makes them once and keeps them; a `.jsonl` whose first line has a `study_id` and `images` is a master
    file; anything else is a table. Entries that cannot be used are counted and named, never dropped in silence.

    Raises:
        ValueError: no such file or folder, nothing usable in it, a patient in two splits, an empty training split.
    """
    rejected: list[Rejected] = []
    if dataset == "synthetic":
        folder = cache_folder() / f"synthetic-v{GENERATOR}-{synthetic_studies}-{synthetic_size}"
        studies = make_studies(folder, count=synthetic_studies, size=synthetic_size)
    else:
        folder = Path(image_folder) if image_folder else Path(dataset).parent
        if not folder.is_dir():
            raise ValueError(f"image folder {folder} does not exist; give the folder that image paths start in")
        if is_master_file(dataset):
            studies = assign_splits(read_jsonl(dataset))
        else:
            exported = cache_folder() / "exported" / dataset.strip("/.").replace("/", "--")
            studies, rejected = read_table(
                dataset, image_column, text_columns, patient_column, split_column, None, folder, exported
            )
            folder = exported if exported.is_dir() and not Path(dataset).is_file() else folder
    if verify_images:
        studies = drop_broken(studies, folder, rejected)
    studies = _drop_unusable(studies, dataset, rejected)
    refuse_leakage(find_leakage(studies))
    limits = {"train": train_studies, "validate": eval_studies, "test": eval_studies}
    by_split = {split: [s for s in studies if s.split == split][: limits[split]] for split in SPLITS}
    if not by_split["train"]:
        raise ValueError(f"{dataset}: no study is left for training; {_reasons(rejected)}")
    return Splits(by_split, folder, Path(dataset).name if Path(dataset).exists() else dataset, tuple(rejected))


def is_master_file(path: str) -> bool:
    """Whether a `.jsonl` file holds studies (`study_id` and `images` in its first line) rather than rows of a table."""
    if not path.endswith(".jsonl") or not Path(path).is_file():
        return False
    with open(path, encoding="utf-8") as handle:
        try:
            first = json.loads(next((line for line in handle if line.strip()), "{}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: the first line is not JSON: {error.msg}") from error
    return isinstance(first, dict) and {"study_id", "images"} <= first.keys()


def drop_broken(studies: Sequence[Study], folder: Path, rejected: list[Rejected]) -> list[Study]:
    """Studies without the images that cannot be read, and without the studies that have none left."""
    broken = find_broken(folder / image.path for study in studies for image in study.images)
    if not broken:
        return list(studies)
    kept = []
    for study in studies:
        bad = {number for number, image in enumerate(study.images) if folder / image.path in broken}
        for number in sorted(bad):
            path = folder / study.images[number].path
            why = "image of one grey value" if broken[path].startswith(ONE_GREY) else "image cannot be read"
            rejected.append(Rejected(str(path), None, study.study_id, why, broken[path]))
        kept.append(without_images(study, bad) if bad else study)
    logger.warning("%d of the images cannot be used; rejected.jsonl names them", len(broken))
    if all(not study.images for study in kept):
        path, reason = next(iter(broken.items()))
        raise ValueError(f"none of {len(broken)} images in {folder} can be used; the first: {path}: {reason}")
    return kept


def _drop_unusable(studies: Sequence[Study], dataset: str, rejected: list[Rejected]) -> list[Study]:
    kept = []
    for study in studies:
        reason = "no image" if not study.images else "empty text" if not study.text() else None
        if reason:
            rejected.append(Rejected(dataset, None, study.study_id, reason))
        else:
            kept.append(study)
    if not kept:
        raise ValueError(f"{dataset}: no study has both an image and a text; {_reasons(rejected)}")
    return kept


def _reasons(rejected: Sequence[Rejected]) -> str:
    counts = Counter(entry.reason for entry in rejected)
    return "left out: " + (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing")
