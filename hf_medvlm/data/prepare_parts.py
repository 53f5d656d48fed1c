"""A corpus prepared in parts, by several processes or machines: `--shard k/n`, and then `--merge`.

A part is written beside the master file: `OUT.shard-K-of-N.jsonl.gz` has its studies, looked at but not yet split, and
in its first line what the others need to know. The merge does what is left as one process would, so that all its files
are those of one process, byte for byte.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from hf_medvlm.data.files import GZIP_ERRORS, atomic_open
from hf_medvlm.data.sources.base import Corpus, Rejected
from hf_medvlm.data.study import Study

Item = TypeVar("Item")
NOT_COMPARED = ("shard", "merge", "workers", "config")


def parse_shard(text: str) -> tuple[int, int]:
    """`"2/4"` -> (2, 4).

    Raises:
        ValueError: no two whole numbers, or the first is not from 1 to the second.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard {text}: K/N is needed, such as 1/4 to 4/4 for four processes")
    return int(match[1]), int(match[2])


def part_of(items: Sequence[Item], shard: tuple[int, int]) -> Sequence[Item]:
    """The k-th of n runs of `items` of about one size; all runs together are `items` in their order."""
    number, count = shard
    return items[len(items) * (number - 1) // count : len(items) * number // count]


def digest_of(study_ids: Iterable[str]) -> str:
    """Stands for the corpus that a part was taken from."""
    digest = hashlib.blake2b(digest_size=16)
    for study_id in study_ids:
        digest.update(f"{study_id}\n".encode())
    return digest.hexdigest()


def part_path(out: Path, shard: tuple[int, int]) -> Path:
    return out.with_name(f"{out.name}.shard-{shard[0]}-of-{shard[1]}.jsonl.gz")


def write_part(options: Namespace, corpora: Iterable[Corpus], digest: str, in_blocks: bool) -> tuple[int, int]:
    """Write one part; how many studies it has, and how many entries were left out of it."""
    shard = parse_shard(options.shard)
    studies: list[Study] = []
    about: dict[str, Any] = {"settings": _settings(options), "digest": digest, "in_blocks": in_blocks, "rejected": []}
    for corpus in corpora:
        studies += corpus.studies
        about["rejected"] += [asdict(entry) for entry in corpus.rejected]
        about |= {"linked": corpus.linked, "given_splits": sorted(corpus.given_splits)}
    with atomic_open(part_path(options.out, shard), "wb") as raw, gzip.open(raw, "wt", encoding="utf-8") as handle:
        for record in (about, *(study.to_dict() for study in studies)):
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(studies), len(about["rejected"])


def read_parts(options: Namespace) -> tuple[Corpus, bool, list[Path]]:
    """All parts as one corpus, whether it was read in blocks, and the files.

    Raises:
        ValueError: no part, one that is missing or broken, one of other options, or of a corpus that has changed.
    """
    paths = _whole_set(options.out)
    merged = Corpus()
    first: dict[str, Any] = {}
    for path in paths:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as handle:
                about = json.loads(handle.readline())
                theirs, digest, entries = about["settings"], about["digest"], about["rejected"]
                merged.studies += [Study.from_dict(json.loads(line)) for line in handle]
        except (*GZIP_ERRORS, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: broken or cut short ({error}); prepare this part again") from error
        wanted = _settings(options)
        for name in sorted(wanted.keys() | theirs):
            ours, other = wanted.get(name), theirs.get(name)
            if ours != other:
                raise ValueError(f"{path}: it was prepared with --{name} {other}, the merge says {ours}")
        first = first or about
        if digest != first["digest"]:
            raise ValueError(f"{path}: the corpus has changed since {paths[0]}; prepare all parts again")
        merged.rejected += [Rejected(**entry) for entry in entries]
    merged.linked, merged.given_splits = first["linked"], frozenset(first["given_splits"])
    return merged, first["in_blocks"], paths


def _whole_set(out: Path) -> list[Path]:
    """The parts beside a master file, all of one number."""
    name = re.compile(re.escape(out.name) + r"\.shard-(\d+)-of-(\d+)\.jsonl\.gz")
    there = [match for path in out.parent.glob("*.jsonl.gz") if (match := name.fullmatch(path.name))]
    counts = sorted({int(match[2]) for match in there})
    if not counts:
        raise ValueError(f"--merge: there is no part beside {out}; prepare them with --shard 1/N to --shard N/N")
    if len(counts) > 1:
        numbers = " and ".join(map(str, counts))
        raise ValueError(f"--merge: beside {out} stand parts of {numbers}; delete those that are not wanted")
    missing = set(range(1, counts[0] + 1)) - {int(match[1]) for match in there}
    if missing:
        named = ", ".join(f"--shard {number}/{counts[0]}" for number in sorted(missing)[:10])
        raise ValueError(f"--merge: {len(missing)} of {counts[0]} parts are missing: {named}")
    return [part_path(out, (number, counts[0])) for number in range(1, counts[0] + 1)]


def _settings(options: Namespace) -> dict[str, Any]:
    """The options that decide what the files hold, as JSON has them."""
    given = {name: value for name, value in vars(options).items() if name not in NOT_COMPARED}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
