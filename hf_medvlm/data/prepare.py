"""A corpus as it was downloaded -> one master file, with counts and reasons: what `recipes/prepare_data.py` does.

The command line stands in `prepare_options.py`, what a corpus looks like in `sources/`.
"""

from __future__ import annotations

import gc
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from hf_medvlm.data.boxes import attach_progression, read_boxes, read_progression, with_boxes
from hf_medvlm.data.cache import LongestSide
from hf_medvlm.data.cache_building import build_cache
from hf_medvlm.data.conversations import to_llava, with_conversations
from hf_medvlm.data.convert_images import convert_images, copy_names
from hf_medvlm.data.files import atomic_open, write_json
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.locks import taken
from hf_medvlm.data.parquet import batches, is_parquet, master_writer
from hf_medvlm.data.prepare_options import read_corpus
from hf_medvlm.data.prepare_parts import digest_of, parse_shard, part_of, part_path, read_parts, write_part
from hf_medvlm.data.quality import (
    apply_label_policy,
    check_studies,
    drop_broken_images,
    drop_images,
    find_leakage,
    refuse_leakage,
    without_images,
)
from hf_medvlm.data.radgraph import attach_triplets, read_radgraph
from hf_medvlm.data.sources.base import Corpus, Rejected, link_priors
from hf_medvlm.data.sources.mimic_cxr import MimicTables, load_studies, read_tables
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study
from hf_medvlm.data.summary import Tally, summarise, tally, to_csv, to_markdown
from hf_medvlm.language.findings import label_report
from hf_medvlm.language.tongues import other_language

CACHED = 512
"""Longer side of the pictures of `--cache` where no `--size` is given."""
BLOCK = 2000
"""Studies of MIMIC-CXR that a worker takes at a time; a corpus of fewer than two blocks needs no workers."""

Made = TypeVar("Made")
_encode = json.JSONEncoder(ensure_ascii=False).encode
_worker: list[Any] = []  # the tables and the options, once for each worker


@dataclass
class Block:
    """What came of some patients: their part of the master file (`batches` of Parquet, else `text`), what was left out,
    and what is counted of them."""

    text: bytes = b""
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    leaks: dict[str, list[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)


def prepare(options: Namespace) -> tuple[dict[str, Any], list[Rejected]]:
    """Write the master file and, beside it, `rejected.jsonl` and `statistics.json`, `.md`, `.csv`.

    Each file is written beside and renamed, the master file last: where it stands, it is whole, and so are the others.

    Returns:
        The statistics, and what was left out.

    Raises:
        ValueError: a corpus that cannot be read; a patient in two splits; nothing is left; another is writing.
    """
    if not options.root.is_dir():
        raise ValueError(f"--root {options.root} is no folder")
    out: Path = options.out
    parts: list[Path] = []
    rejected: list[Rejected] = []
    tallies: dict[str, Tally] = {}
    leaks: dict[str, list[str]] = {}
    languages: Counter[str] = Counter()
    held = taken(out.parent, "; wait until it has ended, or name an --out in another folder")
    with held, no_garbage_collection(), _writer(out) as write:
        for block in _merged(options, parts) if options.merge else _blocks(options):
            write(block)
            rejected += block.rejected
            leaks |= block.leaks
            languages += block.languages
            for split, counted in block.tallies.items():
                tallies.setdefault(split, Tally()).add(counted)
        refuse_leakage(leaks)
        if not tallies:
            raise ValueError(f"{options.root}: no study is left; left out: {_named(rejected)}")
        given = {name: value for name, value in vars(options).items() if name not in ("shard", "merge")}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        left_out = dict(sorted(Counter(entry.reason for entry in rejected).items()))
        summary = {"settings": settings, **summarise(tallies), "left_out": left_out}
        if languages:
            summary["other_languages"] = dict(languages.most_common())
        with atomic_open(out.with_name("rejected.jsonl")) as beside:
            beside.writelines(_encode(asdict(entry)) + "\n" for entry in rejected)
        write_json(out.with_name("statistics.json"), summary)
        for suffix, text in ((".md", to_markdown(summary)), (".csv", to_csv(summary))):
            with atomic_open(out.with_name(f"statistics{suffix}")) as beside:
                beside.write(text)
    for part in parts:
        part.unlink()
    return summary, rejected


def prepare_part(options: Namespace) -> None:
    """Write the part of `--shard`, and say how to go on.

    Raises:
        ValueError: a corpus that cannot be read.
    """
    if not options.root.is_dir():
        raise ValueError(f"--root {options.root} is no folder")
    shard = parse_shard(options.shard)
    with no_garbage_collection():
        if options.corpus == "mimic-cxr":
            tables = read_tables(options.root, options.image_suffix)
            digest, in_blocks = digest_of(tables.study_ids), _in_blocks(tables, options)
            if in_blocks:
                begun = Corpus(rejected=tables.rejected if shard[0] == 1 else [])
                blocks = part_of(tables.blocks(BLOCK), shard)
                corpora: Iterable[Corpus] = chain([begun], _in_pool(_examine_studies, blocks, tables, options))
            else:
                corpora = [_examine(load_studies(tables, tables.study_ids), options, tables.rejected)]
        else:
            corpus = read_corpus(options)
            digest, in_blocks = digest_of(study.study_id for study in corpus.studies), False
            corpora = [_examine(corpus, options)]
        studies, left_out = write_part(options, corpora, digest, in_blocks)
    print(f"{part_path(options.out, shard)}: {studies} studies; {left_out} entries left out")
    print(f"When all {shard[1]} parts are there: the same command with --merge instead of --shard {options.shard}")


def _merged(options: Namespace, parts: list[Path]) -> Iterator[Block]:
    """All parts as one block; their files go to `parts`."""
    corpus, in_blocks, paths = read_parts(options)
    parts += paths
    if options.cache:  # the index of all parts' pictures; those are there
        images = (image.path for study in corpus.studies for image in study.images)
        build_cache(options.cache, options.root, images, LongestSide(options.size or CACHED), options.workers)
    yield _finish(corpus, options, in_blocks)


@contextmanager
def _writer(out: Path) -> Iterator[Callable[[Block], Any]]:
    """A function that writes a block's part of the master file, which is whole or absent in the end."""
    if is_parquet(out):
        with master_writer(out) as write_batch:

            def write(block: Block) -> None:
                for batch in block.batches:
                    write_batch(batch)

            yield write
    else:
        with atomic_open(out, "wb") as handle:
            yield lambda block: handle.write(block.text)


def report(summary: dict[str, Any], rejected: Sequence[Rejected], options: Namespace) -> None:
    """Print the tables, the first entry left out for each reason, and how to train on what was written."""
    print(to_markdown(summary))
    for entry in {entry.reason: entry for entry in reversed(rejected)}.values():
        print(f"left out, for example: {entry}")
    if languages := summary.get("other_languages"):
        named = ", ".join(f"{count} in {language}" for language, count in languages.items())
        print(
            f"warning: --labels text reads English; of the reports {named}: their labels say nothing, or too little; "
            "give labels of your own in columns, with --labels corpus"
        )
    print(f"{options.out}: {summary['splits']['all']['studies']} studies; {len(rejected)} entries in rejected.jsonl")
    cache = f" --image_cache {options.cache}" if options.cache else ""
    folder = _copies(options) if options.convert else options.root
    print(f"Train with --dataset {options.out} --image_folder {folder}{cache}")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of small objects live until the end and hold no cycles; looking for some again and again took a third
    of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _blocks(options: Namespace) -> Iterator[Block]:
    """The corpus in one block; MIMIC-CXR, unless its pixels are read or a JSON document is wanted, in many, since
    repeated rows, priors, splits and leaks are matters of one patient."""
    if options.corpus != "mimic-cxr":
        yield _process(read_corpus(options), options)
        return
    tables = read_tables(options.root, options.image_suffix)
    yield Block(rejected=tables.rejected)
    if not _in_blocks(tables, options):
        yield _process(load_studies(tables, tables.study_ids), options)
        return
    yield from _in_pool(_process_studies, tables.blocks(BLOCK), tables, options)


def _in_pool(
    work: Callable[[Sequence[str]], Made], blocks: Sequence[Sequence[str]], tables: MimicTables, options: Namespace
) -> Iterator[Made]:
    with ProcessPoolExecutor(options.workers, initializer=_start_worker, initargs=(tables, options)) as pool:
        done = pool.map(work, blocks)
        yield from tqdm(done, "Preparing studies", len(blocks), unit=f" x {BLOCK} studies", disable=None)


def _in_blocks(tables: MimicTables, options: Namespace) -> bool:
    """Whether the corpus is large, and need not be dealt with in one piece."""
    annotated = options.boxes or options.progression or options.radgraph
    pixels = options.convert or options.cache or options.verify_images
    return not (len(tables.study_ids) < 2 * BLOCK or pixels or annotated or options.format == "llava")


def _start_worker(tables: MimicTables, options: Namespace) -> None:
    gc.disable()
    _worker[:] = tables, options


def _process_studies(study_ids: Sequence[str]) -> Block:
    tables, options = _worker
    return _process(load_studies(tables, study_ids), options, is_part=True)


def _examine_studies(study_ids: Sequence[str]) -> Corpus:
    tables, options = _worker
    return _examine(load_studies(tables, study_ids), options, is_block=True)


def _process(corpus: Corpus, options: Namespace, is_part: bool = False) -> Block:
    """Take off what cannot be trained on; labels by the stated policy, priors among those left, a split for each."""
    return _finish(_examine(corpus, options, is_block=is_part), options, is_part)


def _examine(corpus: Corpus, options: Namespace, before: Sequence[Rejected] = (), is_block: bool = False) -> Corpus:
    """Look at each study by itself: its text, its annotations, its pixels, the labels in its text.

    Args:
        before: what was left out before. is_block: `corpus` is a block, and not the whole of which `--shard` is a part.
    """
    corpus.rejected[:0] = before
    check_studies(corpus, options.min_characters)
    if options.boxes:
        corpus.studies = with_boxes(corpus.studies, read_boxes(options.boxes), options.root)
    if options.progression:
        corpus.studies = attach_progression(corpus.studies, read_progression(options.progression))
    if options.radgraph:
        corpus.studies = attach_triplets(corpus.studies, read_radgraph(options.radgraph))
    shard = parse_shard(options.shard) if options.shard and not is_block else (1, 1)
    if shard != (1, 1):
        if options.convert:
            copy_names(image.path for study in corpus.studies for image in study.images)
        corpus.studies = list(part_of(corpus.studies, shard))
        if shard[0] > 1:
            corpus.rejected = []  # the first part says it
    if options.convert:
        _convert(corpus, options)
    elif options.cache:
        paths = (image.path for study in corpus.studies for image in study.images)
        how = LongestSide(options.size or CACHED)
        drop_images(corpus, build_cache(options.cache, options.root, paths, how, options.workers).broken, options.root)
    elif options.verify_images:
        drop_broken_images(corpus, options.root, options.workers)
    if options.labels == "text":
        corpus.studies = _label_texts(corpus.studies, 1 if is_block else options.workers)
    return corpus


def _finish(corpus: Corpus, options: Namespace, is_part: bool) -> Block:
    """What is a matter of several studies: priors, splits, leaks, counts; and the text of the master file."""
    studies = link_priors(apply_label_policy(corpus.studies, options.label_policy), corpus.linked)
    if options.rows == "image":
        studies = one_row_per_image(studies)
    leaks = find_leakage(studies)
    shares = {split: getattr(options, split) for split in ("validate", "test")}
    shares |= dict.fromkeys(corpus.given_splits, 0.0)
    studies = assign_splits(studies, options.seed, **shares, fill=not is_part)
    block = Block(rejected=corpus.rejected, tallies=tally(studies), leaks=leaks)
    if options.format == "llava":
        samples = [to_llava(study) for study in with_conversations(studies)]
        block.text = (json.dumps(samples, indent=2, ensure_ascii=False) + "\n").encode()
    elif is_parquet(options.out):
        block.batches = list(batches(studies))
    else:
        block.text = "".join([_encode(study.to_dict()) + "\n" for study in studies]).encode()
    if options.labels == "text":
        block.languages.update(filter(None, (other_language(study.text()) for study in studies)))
    return block


def _copies(options: Namespace) -> Path:
    """The folder of the converted images."""
    return Path(options.image_cache or f"{options.out.with_suffix('')}_png{options.size or ''}")


def _convert(corpus: Corpus, options: Namespace) -> None:
    """Let image paths lead to PNG copies; an image that cannot be read has none, and is taken off."""
    paths = (image.path for study in corpus.studies for image in study.images)
    copies, broken = convert_images(paths, options.root, _copies(options), options.size, options.workers, options.shard)
    drop_images(corpus, broken, options.root)
    corpus.studies = [
        replace(
            _scaled(study, options.root, _copies(options), copies),
            images=tuple(replace(image, path=copies[image.path]) for image in study.images),
        )
        for study in corpus.studies
    ]


def _scaled(study: Study, root: Path, cache: Path, copies: Mapping[str, str]) -> Study:
    """The study with its boxes in pixels of the copies of its images."""
    boxes = []
    for box in study.boxes:
        path = study.images[box.image].path
        before, after = open_radiograph(root / path).size, open_radiograph(cache / copies[path]).size
        across, down = after[0] / before[0], after[1] / before[1]
        x, y, w, h = box.xywh
        boxes.append(replace(box, xywh=(x * across, y * down, w * across, h * down)))
    return replace(study, boxes=tuple(boxes)) if boxes else study


def _label_texts(studies: Sequence[Study], workers: int | None = None) -> list[Study]:
    """The studies with the 14 states that `findings.label_report` reads in their text, in parallel."""
    texts = [study.text() for study in studies]
    if workers == 1 or len(studies) < BLOCK:
        states = [label_report(text) for text in texts]
    else:
        with ProcessPoolExecutor(workers) as pool:
            labelled = pool.map(label_report, texts, chunksize=64)
            states = list(tqdm(labelled, "Labelling reports", len(texts), unit="report", disable=None))
    return [replace(study, labels=labels) for study, labels in zip(studies, states, strict=True)]


def one_row_per_image(studies: Iterable[Study]) -> list[Study]:
    """A row for each frontal image, the laterals behind it; its id is the study's and the file's name, and its prior is
    the first row of the prior study."""
    rows: list[Study] = []
    first: dict[str, str] = {}
    for study in studies:
        frontal = [number for number, image in enumerate(study.images) if image.is_frontal] or [0]
        for number in frontal:
            row = without_images(study, [other for other in frontal if other != number])
            row = replace(row, study_id=f"{study.study_id}-{Path(study.images[number].path).stem}")
            first.setdefault(study.study_id, row.study_id)
            rows.append(row)
    return [
        replace(row, prior_study_id=first[row.prior_study_id]) if row.prior_study_id in first else row for row in rows
    ]


def _named(rejected: Sequence[Rejected]) -> str:
    counts = Counter(entry.reason for entry in rejected)
    first = f"; the first: {rejected[0]}" if rejected else ""
    return (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing") + first
