"""`--dataset` -> studies in three splits, with what was left out and why. Pixels are read only to be sure of them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_medvlm.data import columns
from hf_medvlm.data.column_parts import NotPlain
from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.fields import ALL_TEXT, SECTIONS, section_alternatives
from hf_medvlm.data.files import cache_folder, open_text, read_json
from hf_medvlm.data.images import ONE_GREY
from hf_medvlm.data.parquet import holds_studies, is_parquet
from hf_medvlm.data.quality import find_leakage, refuse_leakage, without_images
from hf_medvlm.data.sources.base import Corpus, Rejected, link_priors
from hf_medvlm.data.sources.shards import is_shards, load_shards
from hf_medvlm.data.sources.table import load_table
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study, read_jsonl
from hf_medvlm.data.synthetic.studies import GENERATOR, make_studies
from hf_medvlm.data.verification import check_images
from hf_medvlm.labels import SPLITS

logger = logging.getLogger(__name__)
Check = Callable[[Path, Iterable[str]], Mapping[str, str]]
"""(folder, paths in it) -> path -> why the image cannot be used."""


@dataclass(frozen=True)
class Splits:
    """The studies of a run.

    Args:
        studies: `train`, `validate`, `test` -> studies, in the order of the data set.
        image_folder: what their image paths are relative to.
        name: the data set's name, for the model card.
        rejected: what was left out.
        notes: what was guessed about a table, for the user to check.
        patients_known: False where nothing in the data tells patients apart, so that one may be in two splits.
    """

    studies: Mapping[str, Sequence[Study]]
    image_folder: Path
    name: str
    rejected: Sequence[Rejected] = field(default_factory=tuple)
    notes: Sequence[str] = ()
    patients_known: bool = True

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


def load_splits(
    dataset: str = "synthetic",
    image_folder: str | Path | None = None,
    image_column: str | None = None,
    text_columns: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    encoding: str | None = None,
    verify_images: bool = True,
    synthetic_studies: int = 2000,
    synthetic_size: int = 128,
    train_studies: int | None = None,
    eval_studies: int | None = None,
    *,
    sections: str = ALL_TEXT,
    held_out: bool = False,
    check: Check = check_images,
    turn: AbstractContextManager[Any] | None = None,
) -> Splits:
    """Studies of `--dataset` (see `DataArguments` for the options).

    `synthetic` makes them once and keeps them; a `.jsonl` whose first line has a `study_id` and `images` is a master
    file; anything else is a table. Entries that cannot be used are counted and named, never dropped in silence.

    Args:
        sections: what the text of a study is (see `Study.text`); a study without it is left out.
        held_out: nothing is trained: every study that is not marked as training or validation is a test study, and
            there need be no training split.
        check: finds the images that cannot be used; called where `verify_images`.
        turn: entered while the data set is read, since what has to be made for it is made by one process.

    Raises:
        ValueError: no such file or folder, nothing usable in it, a patient in two splits, an empty training split.
    """
    section_alternatives(sections)  # a name that is none stops here, before any pixel is read
    with turn or nullcontext():
        studies, corpus = _read_dataset(
            dataset,
            image_folder,
            (image_column, text_columns, patient_column, split_column),
            encoding,
            (synthetic_studies, synthetic_size),
            held_out,
        )
    rejected = corpus.rejected
    folder = corpus.image_folder or data_folder(dataset)
    if verify_images:
        studies = drop_broken(studies, folder, rejected, check)
    studies = _drop_unusable(studies, dataset, rejected, sections)
    splits = splits_of(studies, folder, data_name(dataset), rejected, train_studies, eval_studies, held_out)
    return replace(splits, notes=tuple(corpus.notes), patients_known=corpus.patients_known)


def _read_dataset(
    dataset: str,
    image_folder: str | Path | None,
    named: tuple[str | None, str | None, str | None, str | None],
    encoding: str | None,
    synthetic: tuple[int, int],
    held_out: bool,
) -> tuple[Sequence[Study], Corpus]:
    """The studies of `--dataset`, each with a split; and their image folder, and what else was found."""
    if dataset == "synthetic":
        count, size = synthetic
        folder = cache_folder() / f"synthetic-v{GENERATOR}-{count}-{size}"
        return make_studies(folder, count=count, size=size), Corpus(image_folder=folder)
    if is_shards(dataset):
        if image_folder:
            raise ValueError(
                f"--image_folder {image_folder}: the images of {dataset} lie inside the shards; leave it out"
            )
        master, corpus = load_shards(dataset, named, held_out)
        return with_splits(read_master(str(master)), held_out), corpus
    folder = Path(image_folder) if image_folder else data_folder(dataset)
    if not folder.is_dir():
        raise ValueError(f"image folder {folder} does not exist; give the folder that image paths start in")
    if is_master_file(dataset):
        return with_splits(read_master(dataset), held_out), Corpus(image_folder=folder)
    exported = cache_folder() / "exported" / re.sub(r"[^\w.-]+", "--", dataset.strip("/."))
    corpus = load_table(
        dataset, *named, image_folder=folder, cache_folder=exported, encoding=encoding, held_out=held_out
    )
    corpus.image_folder = corpus.image_folder or folder
    return with_splits(link_priors(corpus.studies), held_out), corpus


def read_master(path: str) -> Sequence[Study]:
    """The studies of a master file: objects of a small JSONL, else a table.

    Raises:
        ValueError: what `read_jsonl` refuses.
    """
    if is_parquet(path):
        return StudyTable.open(path)
    if Path(path).stat().st_size >= columns.ROWS_BELOW:
        try:
            return StudyTable.open(path)
        except NotPlain:  # whoever reads it line by line says where and why, or can read it
            logger.info("%s is read line by line", path)
    return read_jsonl(path)


def with_splits(studies: Sequence[Study], held_out: bool = False) -> Sequence[Study]:
    """A split for each study that has none: by a hash of the patient, or, where nothing is trained, `test`."""
    if isinstance(studies, StudyTable):
        return studies.with_splits(held_out)
    if held_out:
        return [study if study.split else replace(study, split="test") for study in studies]
    return assign_splits(studies)


def splits_of(
    studies: Sequence[Study],
    folder: Path,
    name: str,
    rejected: Sequence[Rejected],
    train_studies: int | None = None,
    eval_studies: int | None = None,
    held_out: bool = False,
) -> Splits:
    """The studies by split, at most so many in each.

    Raises:
        ValueError: a patient in two splits, a limit below 1, an empty training split (or nothing held out).
    """
    refuse_leakage(studies.leaks() if isinstance(studies, StudyTable) else find_leakage(studies))
    for option, limit in (("train_studies", train_studies), ("eval_studies", eval_studies)):
        if limit is not None and limit < 1:
            raise ValueError(f"--{option} {limit}: at least 1 study is needed; leave the option out to use all")
    limits = {"train": train_studies, "validate": eval_studies, "test": eval_studies}
    by_split: dict[str, Sequence[Study]] = {
        split: studies.in_split(split, limits[split])
        if isinstance(studies, StudyTable)
        else [s for s in studies if s.split == split][: limits[split]]
        for split in SPLITS
    }
    if held_out and not by_split["validate"] and not by_split["test"]:
        raise ValueError(
            f"{name}: all {len(by_split['train'])} studies are marked as training, so that there is nothing to score; "
            "mark others as test in its split column"
        )
    if not held_out and not by_split["train"]:
        marked = ", ".join(f"{len(part)} are {split}" for split, part in by_split.items() if part)
        raise ValueError(
            f"{name}: no study is left for training ({marked}); {_reasons(rejected)}. To score a model on a data set "
            "that is all test, use recipes/evaluate_run.py"
        )
    return Splits(by_split, folder, name, tuple(rejected))


def data_name(dataset: str) -> str:
    """What a data set is called: its file's or folder's name, or its id on the Hub."""
    return Path(dataset).name if Path(dataset).exists() or is_shards(dataset) else dataset


def data_folder(dataset: str) -> Path:
    """What image paths start in where no `--image_folder` is given: a data set that is a folder itself, or the folder
    of its file."""
    return Path(dataset) if Path(dataset).is_dir() else Path(dataset).parent


def is_master_file(path: str) -> bool:
    """Whether a `.jsonl` file holds studies (`study_id` and `images` in its first line) rather than rows of a table; or
    a `.parquet` file does (see `parquet.holds_studies`)."""
    if is_parquet(path):
        return holds_studies(path)
    if not path.endswith(".jsonl") or not Path(path).is_file():
        return False
    with open_text(path) as handle:
        number, line = next(((n, line) for n, line in enumerate(handle, start=1) if line.strip()), (1, "{}"))
        first = read_json(line, path, number)
    return isinstance(first, dict) and {"study_id", "images"} <= first.keys()


def drop_broken(
    studies: Sequence[Study], folder: Path, rejected: list[Rejected], check: Check = check_images
) -> Sequence[Study]:
    """Studies without the images that cannot be read, and without the studies that have none left.

    Each such image is one entry of `rejected`.
    """
    table = studies if isinstance(studies, StudyTable) else None
    paths = (image.path for study in studies for image in study.images)
    broken = check(folder, paths if table is None else table.image_paths())
    if not broken:
        return studies

    def reject(study: Study, numbers: Iterable[int]) -> None:
        for path in (study.images[number].path for number in sorted(numbers)):
            why = "image of one grey value" if broken[path].startswith(ONE_GREY) else "image cannot be read"
            rejected.append(Rejected(str(folder / path), None, study.study_id, why, broken[path]))

    kept: Sequence[Study]
    if table is not None:
        kept, lost = table.without_broken(broken)
        for number, numbers in lost:
            reject(table.whole(number), numbers)
    else:
        kept = whole = []
        for study in studies:
            bad = {number for number, image in enumerate(study.images) if image.path in broken}
            reject(study, bad)
            if len(bad) < len(study.images) or not bad:
                whole.append(without_images(study, bad) if bad else study)
    first, reason = next(iter(broken.items()))
    if not kept:
        hint = "" if (folder / first).exists() else "; --image_folder names the folder that image paths start in"
        raise ValueError(
            f"none of {len(broken)} images in {folder} can be used; the first: {folder / first}: {reason}{hint}"
        )
    where = folder / first
    logger.warning("%d of the images cannot be used and are left out; the first: %s: %s", len(broken), where, reason)
    return kept


def _drop_unusable(studies: Sequence[Study], dataset: str, rejected: list[Rejected], sections: str) -> Sequence[Study]:
    if isinstance(studies, StudyTable):
        no_text = (studies.text_sources(ALL_TEXT) < 0) | (studies.text_sources(sections) < 0)
        bad = np.flatnonzero((studies.image_counts() == 0) | (no_text & ~studies.has_conversation()))
        reasons = [_why_unusable(studies[number], dataset, sections) for number in bad.tolist()]
        kept: Sequence[Study] = studies.at(np.delete(studies.rows, bad)) if len(bad) else studies
    else:
        looked = [(study, _why_unusable(study, dataset, sections)) for study in studies]
        reasons = [reason for _, reason in looked]
        kept = [study for study, reason in looked if reason is None]
    rejected += [reason for reason in reasons if reason is not None]
    if not kept:
        wanted = ", ".join(sorted({entry.detail for entry in rejected if entry.reason == f"no {sections}"}))
        hint = f"; --sections {sections} asks for what no study has: {wanted}" if wanted else ""
        raise ValueError(f"{dataset}: no study has both an image and a text; {_reasons(rejected)}{hint}")
    return kept


def _why_unusable(study: Study, dataset: str, sections: str) -> Rejected | None:
    if not study.images:
        return Rejected(dataset, None, study.study_id, "no image")
    if not study.text() and not study.conversations:
        return Rejected(dataset, None, study.study_id, "empty text")
    if not study.text(sections) and not study.conversations:
        has = ", ".join(name for name in SECTIONS if getattr(study, name).strip())
        return Rejected(dataset, None, study.study_id, f"no {sections}", f"it has {has}")
    return None


def _reasons(rejected: Sequence[Rejected]) -> str:
    counts = Counter(entry.reason for entry in rejected)
    return "left out: " + (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing")
