"""What is counted of all studies of a run, objects or columns of a table; the same numbers from both."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.fields import section_alternatives
from hf_medvlm.data.study import Study

Groups = Collection[Sequence[Study]]


def tables_of(groups: Groups) -> list[StudyTable]:
    """The groups, if all of them are tables of one file; else nothing."""
    tables = [group for group in groups if isinstance(group, StudyTable)]
    return tables if len(tables) == len(groups) and len({table.path for table in tables}) == 1 else []


def count_patients(groups: Groups) -> int:
    """Patients in all groups together."""
    if tables := tables_of(groups):
        return int((_seen(tables, "patient") > 0).sum())
    return len({study.patient_id for group in groups for study in group})


def count_values(groups: Groups, name: str) -> Counter[str]:
    """`source` or `licence` -> how many studies have it."""
    if tables := tables_of(groups):
        return sum((table.texts(name) for table in tables), Counter())
    return Counter(getattr(study, name) for group in groups for study in group)


def count_pairs(studies: Sequence[Study], name: str) -> Counter[tuple[str, Any]]:
    """Of `labels` or `progression`: (finding, state) -> how many studies say so."""
    if not isinstance(studies, StudyTable):
        return Counter(pair for study in studies for pair in getattr(study, name).items())
    counts: Counter[tuple[str, Any]] = Counter()
    for text, times in studies.texts(name).items():
        counts.update(dict.fromkeys(json.loads(text or "{}").items(), times))
    return counts


def count_text_sources(groups: Groups, sections: str) -> Counter[tuple[str, ...]]:
    """Alternative of `sections` -> how many studies have their text from it; those with a conversation do not count."""
    if tables := tables_of(groups):
        names: list[tuple[str, ...]] = [*section_alternatives(sections), ()]
        counts: Counter[tuple[str, ...]] = Counter()
        for table in tables:
            numbers, times = np.unique(table.text_sources(sections)[~table.has_conversation()], return_counts=True)
            counts.update(
                {names[number]: count for number, count in zip(numbers.tolist(), times.tolist(), strict=True)}
            )
        return counts
    return Counter(study.text_source(sections) for group in groups for study in group if not study.conversations)


def find_shared(groups: Mapping[str, Sequence[Study]]) -> tuple[list[str], int]:
    """The patients that stand in several splits, and how many images do."""
    tables = tables_of(list(groups.values()))
    if tables and not _in_several(_seen(tables, "patient")):
        return [], _in_several(_seen(tables, "image"))
    patients, images = defaultdict(set), defaultdict(set)
    for split, studies in groups.items():
        for study in studies:
            patients[study.patient_id].add(split)
            for image in study.images:
                images[image.path].add(split)
    shared = [patient for patient, where in patients.items() if len(where) > 1]
    return shared, sum(len(where) > 1 for where in images.values())


def _seen(tables: Sequence[StudyTable], name: str) -> np.ndarray:
    """For each `patient` or `image` of the file, a bit for each table that has it."""
    seen = np.zeros(int(tables[0].columns.numbers[name].max(initial=-1)) + 1, np.uint8)
    for number, table in enumerate(tables):
        for block in table.images() if name == "image" else [table.column(name)]:
            seen[block] |= 1 << number
    return seen


def _in_several(seen: np.ndarray) -> int:
    return int(((seen & (seen - 1)) > 0).sum())


def hash_studies(groups: Groups) -> str:
    """SHA-256 over the JSON of the studies of all groups, in their order, keys sorted."""
    encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
    digest = hashlib.sha256()
    for group in groups:
        records = group.records() if isinstance(group, StudyTable) else (study.to_dict() for study in group)
        for record in records:
            digest.update(encode(record).encode())
    return digest.hexdigest()


class Texts(Sequence[str]):
    """A text of each study, read when the first is asked for, and kept from then on."""

    def __init__(self, studies: Sequence[Study], text_of: Callable[[Study], str]) -> None:
        self.studies, self.text_of = studies, text_of
        self._texts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: Any) -> Any:
        """A text, or a list of them for a slice."""
        if self._texts is None:
            self._texts = [self.text_of(study) for study in self.studies]
        return self._texts[index]
