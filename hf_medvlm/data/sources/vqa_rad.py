"""VQA-RAD's questions and answers (Lau et al. 2018, osf.io/89kps) -> conversations, one question each.

A CSV with the columns image, question, answer, answer_type (CLOSED or OPEN), and where it has them patient_id, split
and licence. The official split has test questions on training images; here the patients are split.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, TURNS, turns_of
from hf_medvlm.data.study import Study, StudyImage

NEEDED = ("image", "question", "answer", "answer_type")
CLOSED, OPEN = "CLOSED", "OPEN"
SPLIT_NAMES = {"train": "train", "validate": "validate", "val": "validate", "test": "test", "heldout": "test"}


def read_vqa_rad(path: str | Path) -> list[Study]:
    """One study a question, `extra["answer_type"]` `CLOSED` or `OPEN`; splits of other names are left open.

    Raises:
        ValueError: no such file, a missing column; with the line: no question or answer, an unknown type.
    """
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise ValueError(f"--data_path {path}: {error.strerror}") from error
    missing = [name for name in NEEDED if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(rows[0]) if rows else 'no rows'}")
    studies = []
    for number, row in enumerate(rows, start=2):
        question, answer, kind = row["question"].strip(), row["answer"].strip(), row["answer_type"].strip().upper()
        if not question or not answer or kind not in (CLOSED, OPEN):
            raise ValueError(
                f"{path}:{number}: a question, an answer and {CLOSED} or {OPEN} are needed, "
                f"found {question!r}, {answer!r}, {kind!r}"
            )
        turns = [{"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": answer}]
        studies.append(
            Study(
                study_id=f"{row['image']}:{number}",
                patient_id=row.get("patient_id") or row["image"],
                split=SPLIT_NAMES.get(row.get("split") or ""),
                images=(StudyImage(row["image"]),),
                report=answer,
                source="VQA-RAD",
                licence=row.get("licence") or "",
                extra={TURNS: turns, "answer_type": kind},
            )
        )
    return studies


def as_multi_turn(studies: Sequence[Study]) -> list[Study]:
    """The questions about one image as one conversation of several turns, in their order: one image is read once."""
    groups: dict[tuple, list[Study]] = defaultdict(list)
    for study in studies:
        groups[study.images].append(study)
    merged = []
    for group in groups.values():
        turns = [dict(turn) for study in group for turn in turns_of(study)]
        for turn in turns[1:]:
            turn["value"] = turn["value"].removeprefix(f"{IMAGE}\n")
        merged.append(replace(group[0], report=turns[-1]["value"], extra={TURNS: turns}))
    return merged
