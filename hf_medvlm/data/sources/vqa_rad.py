"""VQA-RAD's questions and answers (Lau et al. 2018, osf.io/89kps) -> conversations, one question each.

A CSV with the columns image, question, answer, answer_type (CLOSED or OPEN), and where it has them patient_id, split
and licence. The official split has test questions on training images; here the patients are split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data import fields
from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, turns_of
from hf_medvlm.data.fields import id_text
from hf_medvlm.data.sources.base import Rejected, read_csv
from hf_medvlm.data.study import Study, StudyImage

NEEDED = ("image", "question", "answer", "answer_type")
CLOSED, OPEN = "CLOSED", "OPEN"
SPLIT_NAMES = {name: name_of for name, name_of in fields.SPLIT_NAMES.items() if name != "dev"} | {"heldout": "test"}


def read_vqa_rad(path: str | Path) -> list[Study]:
    """One study a question, `answer_type` `CLOSED` or `OPEN`; splits of other names are left open.

    Raises:
        ValueError: no such file, a missing column; with the line: no question or answer, an unknown type.
    """
    studies = []
    rejected: list[Rejected] = []
    for number, row in read_csv(path, NEEDED, rejected):
        question, answer, kind = (row[name].strip() for name in NEEDED[1:])
        kind = kind.upper()
        if not question or not answer or kind not in (CLOSED, OPEN):
            raise ValueError(
                f"{path}:{number}: a question, an answer and {CLOSED} or {OPEN} are needed, "
                f"found {question!r:.100}, {answer!r:.100}, {kind!r:.100}"
            )
        turns = [{"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": answer}]
        try:
            studies.append(
                Study(
                    study_id=f"{row['image']}:{number}",
                    patient_id=id_text(row.get("patient_id"), "patient_id") or row["image"],
                    split=SPLIT_NAMES.get((row.get("split") or "").lower()),
                    images=(StudyImage(row["image"]),),
                    report=answer,
                    source="VQA-RAD",
                    licence=row.get("licence") or "",
                    conversations=tuple(turns),
                    answer_type=kind,
                )
            )
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if rejected:
        raise ValueError(str(rejected[0]))
    if not studies:
        raise ValueError(f"{path}: no questions in it")
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
        merged.append(replace(group[0], report=turns[-1]["value"], conversations=tuple(turns), answer_type=""))
    return merged
