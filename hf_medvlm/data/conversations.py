"""Studies <-> LLaVA conversations. Knows no tokenizer and no pixels.

A study with a conversation is a `Study` whose `extra["conversations"]` holds the turns and whose `images` stand in the
order of the `<image>` marks; everything downstream (collator, evaluation) reads that and nothing else. LLaVA's JSON is
a list of `{"id", "image": path or paths or absent, "conversations": [{"from": "human" or "gpt", "value": text}, ...]}`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import write_json
from hf_medvlm.data.study import Study, StudyImage

IMAGE = "<image>"
HUMAN, ASSISTANT = "human", "gpt"
TURNS = "conversations"
PROMPTS = (
    "Describe the findings in this chest X-ray and write a report.",
    "Write the radiology report of this chest X-ray.",
    "What does this chest X-ray show? Answer with a report.",
    "Provide a description of the findings in the radiology image.",
)
VIEWS = ("frontal", "all")

Turn = Mapping[str, str]


@dataclass(frozen=True)
class ChatOptions:
    """How a study becomes a conversation.

    Args:
        prompts: one is chosen for each study, by its id, the same every time.
        sections: the parts of the study that are the answer, in this order.
        indication: put the study's indication into the prompt.
        views: `frontal`, or `all` images of the study with the frontal one first.
        prior: add the frontal image of the previous study, where it is known.
    """

    prompts: tuple[str, ...] = PROMPTS
    sections: tuple[str, ...] = ("findings", "impression")
    indication: bool = False
    views: str = "frontal"
    prior: bool = False

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("--prompts needs at least one prompt, and none of them empty")
        if self.views not in VIEWS:
            raise ValueError(f"--views {self.views!r} is none of {', '.join(VIEWS)}")


def with_conversations(studies: Sequence[Study], options: ChatOptions | None = None) -> list[Study]:
    """Each study with its conversation; one that has a conversation already keeps it.

    Raises:
        ValueError: a study without a text to answer with.
    """
    options = options or ChatOptions()
    by_id = {study.study_id: study for study in studies}
    return [
        study if TURNS in study.extra else with_conversation(study, options, by_id.get(study.prior_study_id or ""))
        for study in studies
    ]


def with_conversation(study: Study, options: ChatOptions, prior: Study | None = None) -> Study:
    """One question about the study's images, answered by its report."""
    answer = study.text(options.sections)
    if not answer:
        raise ValueError(f"study {study.study_id!r} has no text in {', '.join(options.sections)} to answer with")
    return _asked(study, options, prior, answer)


def with_question(study: Study, options: ChatOptions, prior: Study | None = None, question: str = "") -> Study:
    """The same question about a study without a report; its answer is empty.

    Args:
        question: to be asked instead of one of the options' prompts.
    """
    if question:
        options = replace(options, prompts=(question,), indication=False)
    return _asked(study, options, prior, "")


def _asked(study: Study, options: ChatOptions, prior: Study | None, answer: str) -> Study:
    named = [(image, image.view or "frontal") for image in _chosen_images(study, options.views)]
    if options.prior and prior is not None and prior.frontal is not None:
        named.append((prior.frontal, "previous " + (prior.frontal.view or "frontal")))
    question = options.prompts[zlib.crc32(study.study_id.encode()) % len(options.prompts)]
    if len(named) > 1:
        question += f" The images are, in this order: {', '.join(name for _, name in named)}."
    if options.indication and (indication := without_repeats(study.indication, answer)):
        question += f" Indication: {indication}"
    turns = [
        {"from": HUMAN, "value": f"{IMAGE}\n" * len(named) + question},
        {"from": ASSISTANT, "value": answer},
    ]
    # boxes index `images`, which are chosen and ordered anew
    place = {image: number for number, (image, _) in enumerate(named)}
    boxes = tuple(
        replace(box, image=place[study.images[box.image]]) for box in study.boxes if study.images[box.image] in place
    )
    images = tuple(image for image, _ in named)
    return replace(study, images=images, boxes=boxes, extra={**study.extra, TURNS: turns})


def _chosen_images(study: Study, views: str) -> list[StudyImage]:
    frontal = study.frontal
    if frontal is None:
        return []
    return [frontal] + [image for image in study.images if views == "all" and image != frontal]


def without_repeats(indication: str, answer: str) -> str:
    """The sentences of the indication that the answer does not hold: what is to be written is never shown."""
    said = _letters(answer)
    sentences = re.split(r"(?<=[.!?;])\s+", indication.strip())
    return " ".join(sentence for sentence in sentences if sentence and _letters(sentence) not in said)


def _letters(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def turns_of(study: Study) -> Sequence[Turn]:
    """The conversation of a study.

    Raises:
        ValueError: it has none.
    """
    if TURNS not in study.extra:
        raise ValueError(f"study {study.study_id!r} has no conversation; make one with `with_conversations`")
    return study.extra[TURNS]


def answer_of(study: Study) -> str:
    """The last answer: what the model is to write."""
    return turns_of(study)[-1]["value"]


def modality_length(study: Study) -> int:
    """LLaVA's length of a sample: words of all turns, negative where there is no image; never 0."""
    words = max(sum(len(turn["value"].split()) for turn in turns_of(study)), 1)
    return words if study.images else -words


def place_images(conversations: Sequence[Turn], images: int | None = None) -> list[dict[str, str]]:
    """LLaVA's `preprocess_multimodal`: a turn that names images starts with them and is stripped.

    Args:
        images: how many images the sample has. None is LLaVA's own rule: one for each turn that names any.

    Raises:
        ValueError: the conversation does not name as many images as there are.
    """
    found = sum(turn["value"].count(IMAGE) for turn in conversations)
    if images is not None and found != images:
        raise ValueError(f"the conversation names {IMAGE} {found} time(s), but the sample has {images} image(s)")
    placed = []
    for turn in conversations:
        text = turn["value"]
        if count := text.count(IMAGE):
            marks = f"{IMAGE}\n" * (1 if images is None else count)
            text = (marks + text.replace(IMAGE, "").strip()).strip()
        placed.append({"from": turn["from"], "value": text})
    return placed


def check_roles(conversations: Sequence[Turn]) -> Sequence[Turn]:
    """Turns in the order human, gpt, human, gpt, ...; like LLaVA, a first turn of gpt is left out.

    Raises:
        ValueError: an unknown speaker, two turns of one speaker in a row, or no answer at the end.
    """
    for place, turn in enumerate(conversations):
        if not isinstance(turn, Mapping) or turn.get("from") not in (HUMAN, ASSISTANT):
            raise ValueError(f'turn {place} must be {{"from": "human" or "gpt", "value": text}}, found {turn!r:.200}')
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"turn {place} has no text: its value is {turn.get('value')!r:.200}")
    turns = conversations[1:] if conversations and conversations[0]["from"] == ASSISTANT else conversations
    order = [turn["from"] for turn in turns]
    if not order or order != [HUMAN, ASSISTANT] * (len(order) // 2):
        found = ", ".join(turn["from"] for turn in conversations) or "no turns"
        raise ValueError(f"roles out of order: human and gpt take turns, and gpt has the last word; found {found}")
    return turns


def to_llava(study: Study) -> dict[str, Any]:
    """One sample of LLaVA's JSON; patient, split and views ride along, which LLaVA ignores."""
    record: dict[str, Any] = {"id": study.study_id}
    if study.images:
        paths = [image.path for image in study.images]
        record["image"] = paths[0] if len(paths) == 1 else paths
        record["views"] = [image.view for image in study.images]
    extra = {key: value for key, value in study.extra.items() if key != TURNS}
    return record | {TURNS: list(turns_of(study)), "patient_id": study.patient_id, "split": study.split} | extra


def from_llava(record: Any) -> Study:
    """The study of one LLaVA sample; without a `patient_id`, samples of one image count as one patient.

    Raises:
        ValueError: no id, roles out of order, a path that leaves the image folder, an image count that differs from the
            `<image>` marks, or answers that are all empty.
    """
    if not isinstance(record, Mapping) or record.get("id") in (None, "") or not isinstance(record.get(TURNS), list):
        raise ValueError(f'a sample is {{"id", "image", "conversations"}}, found {record!r:.200}')
    paths = record.get("image") or []
    paths = [paths] if isinstance(paths, str) else list(paths)
    views = record.get("views") or [None] * len(paths)
    turns = check_roles(record[TURNS])
    place_images(turns, len(paths))
    if not any(turn["value"].strip() for turn in turns[1::2]):
        raise ValueError("every answer is empty, so there is nothing to learn from it")
    known = ("id", "image", "views", TURNS, "patient_id", "split")
    return Study(
        study_id=str(record["id"]),
        patient_id=str(record.get("patient_id") or (paths[0] if paths else record["id"])),
        split=record.get("split"),
        images=tuple(StudyImage(path, view) for path, view in zip(paths, views, strict=True)),
        report=turns[-1]["value"],
        extra={TURNS: list(turns)} | {key: value for key, value in record.items() if key not in known},
    )


def read_llava(path: str | Path) -> list[Study]:
    """The samples of a LLaVA file: one JSON list, or `.jsonl` with a sample a line.

    LLaVA's own files give several samples one id; the second becomes `id#2`, and so on.

    Raises:
        ValueError: broken JSON, with line and column; a sample that cannot be one, with its place and id.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--data_path {path}: {error.strerror}") from error
    studies: list[Study] = []
    seen: Counter[str] = Counter()
    for number, record in enumerate(_records(path, text)):
        name = f" (id {record.get('id')!r})" if isinstance(record, Mapping) else ""
        try:
            study = from_llava(record)
        except ValueError as error:
            raise ValueError(f"{path}: sample {number}{name}: {error}") from error
        seen[study.study_id] += 1
        times = seen[study.study_id]
        studies.append(replace(study, study_id=f"{study.study_id}#{times}") if times > 1 else study)
    if not studies:
        raise ValueError(f"{path}: no samples in it")
    return studies


def _records(path: Path, text: str) -> list[Any]:
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    records = []
    for number, line in enumerate(lines):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{error.lineno + number}: not JSON at column {error.colno}: {error.msg}, "
                f"near {line[max(error.pos - 30, 0) : error.pos + 10]!r}"
            ) from error
    if path.suffix == ".jsonl" or not records:
        return records
    if not isinstance(records[0], list):
        raise ValueError(f"{path}: LLaVA's file is a list of samples, found a {type(records[0]).__name__}")
    return records[0]


def write_llava(studies: Iterable[Study], path: str | Path) -> int:
    """Write LLaVA's JSON, whole or not at all; return the number of samples."""
    records = [to_llava(study) for study in studies]
    write_json(path, records)
    return len(records)
