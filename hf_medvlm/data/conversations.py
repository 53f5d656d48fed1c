"""Studies <-> LLaVA conversations. Knows no tokenizer and no pixels.

A study with a conversation is a `Study` whose `conversations` holds the turns and whose `images` stand in the
order of the `<image>` marks; everything downstream (collator, evaluation) reads that and nothing else. LLaVA's JSON is
a list of `{"id", "image": path or paths or absent, "conversations": [{"from": "human" or "gpt", "value": text}, ...]}`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_medvlm.data.columns import StudyTable
from hf_medvlm.data.fields import ALL_TEXT, SPLIT_NAMES, id_text, patient_of_path, plain_text
from hf_medvlm.data.files import open_text, read_json
from hf_medvlm.data.study import Study, StudyImage

IMAGE = "<image>"
HUMAN, ASSISTANT = "human", "gpt"
PREVIOUS = "previous "  # before the view of an earlier image, in a question that names its images
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
        sections: the parts of the study that are the answer, as `Study.text` takes them.
        indication: put the study's indication into the prompt.
        views: `frontal`, or `all` images of the study with the frontal one first.
        prior: add the frontal image of the previous study, where it is known.
    """

    prompts: tuple[str, ...] = PROMPTS
    sections: str | tuple[str, ...] = ALL_TEXT
    indication: bool = False
    views: str = "frontal"
    prior: bool = False

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("--prompts needs at least one prompt, and none of them empty")
        if self.views not in VIEWS:
            raise ValueError(f"--views {self.views!r:.100} is none of {', '.join(VIEWS)}")


def with_conversations(studies: Sequence[Study], options: ChatOptions | None = None) -> Sequence[Study]:
    """Each study with its conversation; one that has a conversation already keeps it. Those of a table are made when
    they are asked for.

    Raises:
        ValueError: a study without a text to answer with.
    """
    options = options or ChatOptions()
    if isinstance(studies, StudyTable):
        return studies.changed(partial(_in_table, options))
    by_id = {study.study_id: study for study in studies}
    return [
        study if study.conversations else with_conversation(study, options, by_id.get(study.prior_study_id or ""))
        for study in studies
    ]


def _in_table(options: ChatOptions, table: StudyTable, number: int, study: Study) -> Study:
    if study.conversations:
        return study
    return with_conversation(study, options, table.prior(number) if options.prior else None)


def with_conversation(study: Study, options: ChatOptions, prior: Study | None = None) -> Study:
    """One question about the study's images, answered by its report."""
    answer = study.text(options.sections)
    if not answer:
        sections = options.sections if isinstance(options.sections, str) else ", ".join(options.sections)
        raise ValueError(f"study {study.study_id!r:.100} has no text in {sections} to answer with")
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
        named.append((prior.frontal, PREVIOUS + (prior.frontal.view or "frontal")))
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
    return replace(study, images=images, boxes=boxes, conversations=tuple(turns))


def _chosen_images(study: Study, views: str) -> list[StudyImage]:
    frontal = study.frontal
    if frontal is None:
        return []
    return [frontal] + [image for image in study.images if views == "all" and image != frontal]


def without_repeats(indication: str, answer: str) -> str:
    """The sentences of the indication that the answer does not hold: what is to be written is never shown."""
    answered = _letters(answer)
    sentences = re.split(r"(?<=[.!?;])\s+", indication.strip())
    return " ".join(sentence for sentence in sentences if sentence and _letters(sentence) not in answered)


def _letters(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def turns_of(study: Study) -> Sequence[Turn]:
    """The conversation of a study.

    Raises:
        ValueError: it has none.
    """
    if not study.conversations:
        raise ValueError(f"study {study.study_id!r:.100} has no conversation; make one with `with_conversations`")
    return study.conversations


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
    placeholders = sum(turn["value"].count(IMAGE) for turn in conversations)
    if images is not None and placeholders != images:
        raise ValueError(f"the conversation names {IMAGE} {placeholders} time(s), but the sample has {images} image(s)")
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
        speakers = ", ".join(turn["from"] for turn in conversations) or "no turns"
        raise ValueError(f"roles out of order: human and gpt take turns, and gpt has the last word; found {speakers}")
    return turns


def to_llava(study: Study) -> dict[str, Any]:
    """One sample of LLaVA's JSON; patient, split and views ride along, which LLaVA ignores."""
    record: dict[str, Any] = {"id": study.study_id}
    if study.images:
        paths = [image.path for image in study.images]
        record["image"] = paths[0] if len(paths) == 1 else paths
        record["views"] = [image.view for image in study.images]
    more = {key: value for key, value in study.optional_fields().items() if key != TURNS}
    turns = [dict(turn) for turn in turns_of(study)]
    return record | {TURNS: turns, "patient_id": study.patient_id, "split": study.split} | more | dict(study.extra)


def from_llava(record: Any) -> Study:
    """The study of one LLaVA sample. Without a `patient_id` its image path tells the patient where it does as
    MIMIC-CXR's do; else samples of one image count as one patient.

    The fields of a study that a sample has beside LLaVA's own (`answer_type`, `licence`, ...) are taken over.

    Raises:
        ValueError: no id, roles out of order, a path that leaves the image folder, an image count that differs from the
            `<image>` marks, answers that are all empty, or a field of another type.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get(TURNS), list):
        raise ValueError(f'a sample is {{"id", "image", "conversations"}}, found {record!r:.200}')
    name = id_text(record.get("id"), "id")
    if not name:
        raise ValueError(f"a sample needs an id, found {record!r:.200}")
    paths = _paths(record.get("image"))
    views = [None] * len(paths) if record.get("views") is None else record["views"]
    if not isinstance(views, list) or len(views) != len(paths):
        raise ValueError(f"views must be a list, one for each of {len(paths)} image(s), found {views!r:.100}")
    turns = check_roles(record[TURNS])
    place_images(turns, len(paths))
    if not any(turn["value"].strip() for turn in turns[1::2]):
        raise ValueError("every answer is empty, so there is nothing to learn from it")
    split = plain_text(record.get("split"), "split").strip()
    others = {key: value for key, value in record.items() if key not in ("id", "image", "views")}
    return Study.from_dict(
        others
        | {
            "study_id": name,
            "patient_id": patient_of(record, paths, name),
            "split": SPLIT_NAMES.get(split.lower(), split) or None,
            "images": [{"path": path, "view": view} for path, view in zip(paths, views, strict=True)],
            "report": turns[-1]["value"],
            TURNS: list(turns),
        }
    )


def patient_of(record: Mapping[str, Any], paths: Sequence[str], name: str) -> str:
    """A sample's `patient_id`, or the patient that its image path names, or that path, or the sample itself."""
    given = id_text(record.get("patient_id"), "patient_id")
    return given or (patient_of_path(paths[0]) or paths[0] if paths else name)


def patients_known(studies: Iterable[Study]) -> bool:
    """Whether each sample has a patient, and not an image path or an id in the place of one (see `patient_of`)."""
    return all(study.patient_id not in (study.study_id, *(i.path for i in study.images[:1])) for study in studies)


def _paths(image: Any) -> list[str]:
    """The image paths of a sample: none, one, or several."""
    paths = [] if image in (None, "") else [image] if isinstance(image, str) else image
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"image must be a path or a list of paths, found {image!r:.100}")
    return paths


def read_llava(path: str | Path) -> list[Study]:
    """The samples of a LLaVA file: one JSON list, or `.jsonl` with a sample a line.

    LLaVA's own files give several samples one id; the second becomes `id#2`, and so on.

    Raises:
        ValueError: broken JSON, with line and column; a sample that cannot be one, with its place and id.
    """
    path = Path(path)
    studies: list[Study] = []
    seen: Counter[str] = Counter()
    for number, record in enumerate(read_records(path)):
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


def read_records(path: Path) -> list[Any]:
    """The samples of a `.json` list or a `.jsonl`, undecoded.

    In `.jsonl` a line ends with a line feed; U+2028 and the like are part of a text."""
    with open_text(path) as handle:
        texts = enumerate(handle, start=1) if path.suffix == ".jsonl" else [(1, handle.read())]
        records = [read_json(text, path, line) for line, text in texts if text.strip()]
    if path.suffix == ".jsonl" or not records:
        return records
    if not isinstance(records[0], list):
        raise ValueError(f"{path}: LLaVA's file is a list of samples, found a {type(records[0]).__name__}")
    return records[0]
