"""Files of conversations of any usual kind -> studies: LLaVA's, ShareGPT `messages`, VQA-RAD's own and SLAKE's own.

Which kind a file is, its first record says. VQA-RAD (Lau et al. 2018, osf.io/89kps) and SLAKE (Liu et al. 2021, arXiv
2102.09542) are read as they are published; their images lie in `--image_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_medvlm.data.conversations import ASSISTANT, HUMAN, IMAGE, TURNS, patient_of, read_llava, read_records
from hf_medvlm.data.fields import id_text, plain_text
from hf_medvlm.data.sources.vqa_rad import CLOSED, OPEN, read_vqa_rad
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.errors import clipped

SPEAKERS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": "system"}
SLAKE_SPLITS = {"train": "train", "validate": "validate", "validation": "validate", "test": "test"}


def read_conversation_file(path: str | Path) -> list[Study]:
    """The samples of a file, one study each.

    Args:
        path: a `.csv` of `read_vqa_rad`, a `.json` or `.jsonl`, or a folder with SLAKE's train.json, validate.json and
            test.json.

    Raises:
        ValueError: no such file, or records of no known kind; with the number of the record, one that is not whole.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / f"{name}.json" for name in ("train", "validate", "test") if (path / f"{name}.json").is_file()]
        if not files:
            raise ValueError(f"--data_path {path}: a folder must hold SLAKE's train.json, validate.json and test.json")
        return [study for file in files for study in read_conversation_file(file)]
    if path.suffix == ".csv":
        return read_vqa_rad(path)
    records = read_records(path)
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    if "messages" in first:
        return _each(path, records, _from_messages)
    if "img_name" in first and "q_lang" in first:
        return _each(path, records, _from_slake, split=SLAKE_SPLITS.get(path.stem))
    if "image_name" in first and "phrase_type" in first:
        return _each(path, records, _from_vqa_rad)
    return read_llava(path)


def _each(path: Path, records: list[Any], read: Any, **options: Any) -> list[Study]:
    studies = []
    for number, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise ValueError(f"a record is an object, found a {type(record).__name__}")
            study = read(record, number, **options)
        except ValueError as error:
            raise ValueError(f"{path}: record {number}: {error}") from error
        if study is not None:
            studies.append(study)
    if not studies:
        raise ValueError(f"{path}: no questions in English in it")
    return studies


def _from_messages(record: Mapping[str, Any], number: int) -> Study:
    """`{"messages": [{"role", "content"}], "images": [path, ...]}`; images named in blocks count too."""
    if not isinstance(record.get("messages"), list):
        raise ValueError("messages must be a list of {role, content}")
    listed = record.get("images", record.get("image"))
    if not (listed is None or isinstance(listed, (str, list))):
        raise ValueError(f"images must be a list of paths, found {clipped(listed)}")
    paths = [listed] if isinstance(listed, str) else list(listed or [])
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f"images must be a list of paths, found {clipped(listed)}")
    turns, named = [], []
    for place, message in enumerate(record["messages"]):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in SPEAKERS:
            raise ValueError(f"message {place} must be {{role, content}} with a role of {', '.join(SPEAKERS)}")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
            raise ValueError(f"message {place} has no content")
        text = ""
        for block in blocks:
            if block.get("type") == "image":
                text += f"{IMAGE}\n"
                named += [block[key] for key in ("path", "image", "url") if isinstance(block.get(key), str)][:1]
            elif block.get("type") == "text" and isinstance(block.get("text"), str):
                text += block["text"]
            else:
                raise ValueError(f"message {place}: a block is a text or an image, found {block.get('type')!r:.60}")
        turns.append({"from": SPEAKERS[message["role"]], "value": text})
    paths = paths or named
    marks = sum(turn["value"].count(IMAGE) for turn in turns)
    if not marks and paths:  # no mark at all: the images belong to the first question, as everywhere in this format
        first = next((turn for turn in turns if turn["from"] == HUMAN), None)
        if first is not None:
            first["value"] = f"{IMAGE}\n" * len(paths) + first["value"]
    elif marks != len(paths):
        raise ValueError(f"its messages name {marks} image(s), and {len(paths)} are listed")
    if not turns or turns[-1]["from"] != ASSISTANT:
        raise ValueError("the assistant must have the last word")
    others = {key: value for key, value in record.items() if key not in ("id", "messages", "images", "image")}
    name = id_text(record.get("id", number), "id")
    return Study.from_dict(
        others
        | {
            "study_id": name,
            "patient_id": patient_of(record, paths, name),
            "images": [{"path": path} for path in paths],
            "report": turns[-1]["value"],
            TURNS: turns,
        }
    )


def _from_vqa_rad(record: Mapping[str, Any], number: int) -> Study:
    case = plain_text(record.get("image_case_url") or record.get("image_name"), "image_case_url")
    name = id_text(record.get("qid", number), "qid")
    return _question(record, name, record.get("image_name"), case, None, "VQA-RAD", "CC0 1.0")


def _from_slake(record: Mapping[str, Any], number: int, split: str | None = None) -> Study | None:
    if record.get("q_lang") != "en":
        return None  # SLAKE asks everything in Chinese too
    name = f"{split or 'slake'}-{id_text(record.get('qid', number), 'qid')}"
    patient = id_text(record.get("img_id") or record.get("img_name"), "img_id")
    return _question(record, name, record.get("img_name"), patient, split, "SLAKE", "CC BY 4.0")


def _told(record: Mapping[str, Any], key: str) -> str:
    """A text, or a number as the answer to "how many", as text."""
    value = record.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number else plain_text(value, key).strip()


def _question(
    record: Mapping[str, Any],
    name: str,
    path: Any,
    patient: str,
    split: str | None,
    source: str,
    licence: str,
) -> Study:
    question, answer, kind = (_told(record, key) for key in ("question", "answer", "answer_type"))
    kind = kind.upper()
    path = plain_text(path, "the image's name")
    if not question or not answer or kind not in (CLOSED, OPEN):
        raise ValueError(
            f"a question, an answer and {CLOSED} or {OPEN} are needed, found {question!r:.100}, "
            f"{answer!r:.100}, {kind!r:.100}"
        )
    return Study(
        study_id=name,
        patient_id=patient,
        split=split,
        images=(StudyImage(path),),
        report=answer,
        source=source,
        licence=licence,
        conversations=({"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": answer}),
        answer_type=kind,
    )
