"""Tables, the master file, conversations, annotations beside a corpus, and the corpora themselves."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import make_corpora

from fuzzing import mutate
from fuzzing.pool import Made, Reader
from hf_medvlm.data.study import Study, check_relative_path
from hf_medvlm.labels import SPLITS

TEXT = "The heart is enlarged. No pleural effusion or pneumothorax is seen."
HEADER = "study_id patient_id split image view findings impression labels Edema study_date".split()


def _rows() -> list[list[str]]:
    return [
        [
            f"s{n}",
            f"p{n // 2}",
            SPLITS[n // 2 % 3],
            f"i{n}.png",
            "PA",
            f"Case {n}. {TEXT}",
            "No change.",
            "Edema",
            "1.0",
        ]
        + [f"2020-01-0{n + 1}"]
        for n in range(6)
    ]


def _pictures(folder: Path) -> None:
    for n in range(6):
        make_corpora.write_image(folder / f"i{n}.png", seed=n, size=12)


def make_table(rng: Random, folder: Path) -> Made:
    _pictures(folder)
    kind = rng.choice(["csv", "tsv", "jsonl", "json", "xlsx", "parquet", "csv.gz", "folder"])
    path = folder / f"reports.{kind}"
    rows = [HEADER, *_rows()]
    records = [dict(zip(HEADER, row, strict=True)) for row in rows[1:]]
    if rng.random() < 0.06 and kind != "folder":
        return Made(path, f"{kind}: {mutate.special(path, rng)}", [path.name])
    if kind in ("csv", "tsv", "csv.gz"):
        content, what = mutate.table_text(rows, rng, "\t" if kind == "tsv" else ",")
        path.write_bytes(gzip.compress(content)[: rng.choice([None, 60])] if kind == "csv.gz" else content)
    elif kind in ("jsonl", "json"):
        content, what = mutate.json_text(records, rng, lines=kind == "jsonl")
        path.write_bytes(content)
    else:
        records, what = mutate.json_value(records, rng)
        path, what = _binary_table(folder, kind, records, rng, what)
    return Made(path, f"{kind}: {what}", [path.name])


def _binary_table(folder: Path, kind: str, records: Any, rng: Random, what: str) -> tuple[Path, str]:
    """Excel, Parquet or a saved data set; what those cannot hold is written as text."""
    rows = (
        [row if isinstance(row, dict) else {"odd": row} for row in records if records]
        if isinstance(records, list)
        else []
    )
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["odd"]

    def cells(row: dict[str, Any]) -> list[str | None]:
        values = [row.get(name) for name in columns]
        texts = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
        return [None if t is None else "".join(c for c in t if c.isprintable())[:30_000] for t in texts]

    path = folder / f"reports.{kind}"
    if kind == "xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for line in [columns, *map(cells, rows)]:
            book.active.append([_excel(cell) for cell in line])
        book.save(path)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(dict.fromkeys(str(name) for name in columns))
        table = pa.table({name: [cells(row)[place] for row in rows] for place, name in enumerate(names)})
        if kind == "folder":
            import datasets

            path = folder / "saved"
            datasets.Dataset(table).save_to_disk(str(path))
        else:
            pq.write_table(table, path)
    if rng.random() < 0.4:
        victim = path if path.is_file() else rng.choice(sorted(p for p in path.rglob("*") if p.is_file()))
        content, what = mutate.bytes_of(victim.read_bytes(), rng)
        victim.write_bytes(content)
    return path, what


def _excel(cell: str | None) -> str | None:
    return None if cell is None else f"'{cell}" if cell.startswith("=") else cell


def read_table(made: Made) -> Any:
    from hf_medvlm.data.load import load_splits

    folder = made.target.parent
    before = os.environ.get("HF_MEDVLM_CACHE")
    os.environ["HF_MEDVLM_CACHE"] = str(folder / "cache")
    try:
        splits = load_splits(str(made.target), str(folder), verify_images=False)
    finally:
        if before is not None:
            os.environ["HF_MEDVLM_CACHE"] = before
    return [study for part in splits.studies.values() for study in part], splits.rejected


def studies_are_sound(studies: Iterable[Study]) -> bool:
    """Every field has its type, every path stays inside, a study comes back from JSON as it was."""
    for study in studies:
        for image in study.images:
            check_relative_path(image.path)
        if Study.from_dict(json.loads(json.dumps(study.to_dict()))) != study:
            return False
        if any(word in study.text() for word in ("['", "{'")):
            return False  # a list or an object written out as Python does
    return True


def justify_table(made: Made, result: Any) -> str | None:
    studies, rejected = result
    if not studies_are_sound(studies):
        return None
    if any(not entry.reason for entry in rejected):
        return None
    return "studies are sound, what is left out is named" if rejected else "studies are sound"


# ---------------------------------------------------------------- master file


def _master() -> list[dict[str, Any]]:
    return [
        {
            "study_id": f"s{n}",
            "patient_id": f"p{n}",
            "split": SPLITS[n % 3],
            "images": [{"path": f"i{n}.png", "view": "PA"}],
            "findings": TEXT,
            "impression": "No change.",
            "report": "",
            "indication": "Cough.",
            "labels": {"Edema": 1, "Fracture": None},
            "prior_study_id": None,
            "study_date": "2020-01-01",
            "boxes": [{"image": 0, "phrase": "the heart", "xywh": [1, 2, 3, 4], "finding": "Cardiomegaly"}],
            "source": "here",
            "licence": "CC0-1.0",
            "comparison": "None.",
            "triplets": [["effusion", "left_pleural", "present"]],
            "progression": {"Edema": "stable"},
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Clear."}],
            "answer_type": "OPEN",
            "other": {"kept": [1, None]},
        }
        for n in range(4)
    ]


def make_master(rng: Random, folder: Path) -> Made:
    path = folder / "master.jsonl"
    way = rng.random()
    if way < 0.03:
        path.write_text("".join(json.dumps(record) + "\n" for record in _master()))
        return Made(path, "nothing", [path.name], valid=True)
    if way < 0.09:
        return Made(path, mutate.special(path, rng), [path.name])
    content, what = mutate.json_text(_master(), rng, lines=True)
    path.write_bytes(content)
    return Made(path, what, [path.name])


def read_master(made: Made) -> Any:
    from hf_medvlm.data.study import read_jsonl

    return read_jsonl(made.target), []


def _encoding(path: Path) -> str:
    return "utf-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def justify_master(made: Made, result: Any) -> str | None:
    """What a known key holds is what the file holds: nothing but the numbers of ids is turned into text."""
    studies, _ = result
    if not studies_are_sound(studies):
        return None
    lines = [line for line in made.target.read_bytes().decode(_encoding(made.target)).splitlines() if line.strip()]
    for line, study in zip(lines, studies, strict=False):
        record = json.loads(line)
        for name in ("findings", "impression", "report", "indication", "source", "licence", "comparison"):
            if (record.get(name) or "") != getattr(study, name):
                return None
        if any(
            type(record.get(n)) not in (str, int, float, type(None))
            for n in ("study_id", "patient_id", "prior_study_id")
        ):
            return None
        if len(record.get("images") or []) != len(study.images) or len(record.get("boxes") or []) != len(study.boxes):
            return None
    return "every field is the file's, or an id's number as text"


# ---------------------------------------------------------------- conversations


def _chat(kind: str) -> Any:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "The lungs are clear."}]
    if kind == "messages":
        return [
            {
                "id": f"a{n}",
                "images": [f"i{n}.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                    {"role": "assistant", "content": "Clear lungs."},
                ],
            }
            for n in range(3)
        ]
    if kind == "slake":
        return [
            {
                "img_id": n,
                "img_name": f"i{n}.png",
                "question": "Is it clear?",
                "answer": "Yes",
                "q_lang": "en",
                "qid": n,
                "answer_type": "CLOSED",
            }
            for n in range(3)
        ]
    if kind == "vqa":
        return [
            {
                "qid": n,
                "image_name": f"i{n}.png",
                "question": "Is it clear?",
                "answer": "Yes",
                "answer_type": "CLOSED",
                "phrase_type": "freeform",
                "image_case_url": f"http://x/{n}",
            }
            for n in range(3)
        ]
    return [{"id": f"a{n}", "image": f"i{n}.png", "conversations": turns, "views": ["PA"]} for n in range(3)]


def make_chat(rng: Random, folder: Path) -> Made:
    kind = rng.choice(["llava", "llava", "messages", "slake", "vqa", "csv"])
    if kind == "csv":
        header = "image,question,answer,answer_type,split,question_type,phrase_type,image_organ,qid,licence".split(",")
        rows = [
            [f"i{n}.png", "Is it clear?", "yes", "CLOSED", "train", "PRES", "freeform", "CHEST", str(n), ""]
            for n in range(3)
        ]
        path = folder / "qa.csv"
        content, what = mutate.table_text([header, *rows], rng)
    else:
        lines = rng.random() < 0.3
        path = folder / ("chat.jsonl" if lines else "chat.json")
        content, what = mutate.json_text(_chat(kind), rng, lines)
    if rng.random() < 0.06:
        return Made(path, mutate.special(path, rng), [path.name])
    path.write_bytes(content)
    return Made(path, f"{kind}: {what}", [path.name])


def read_chat(made: Made) -> Any:
    from hf_medvlm.data.sources.conversation_files import read_conversation_file

    return read_conversation_file(made.target), []


def justify_chat(made: Made, result: Any) -> str | None:
    studies, _ = result
    if not studies_are_sound(studies) or any("{'" in image.path for s in studies for image in s.images):
        return None
    whole = all(turn["value"] is not None for study in studies for turn in study.conversations)
    return "turns and paths are texts, marks and images agree" if whole and studies else None


# ---------------------------------------------------------------- annotations


def make_annotation(rng: Random, folder: Path) -> Made:
    kind = rng.choice(["ms_cxr.json", "ms_cxr.csv", "rsna.csv", "vindr.csv", "progression.csv", "radgraph.json"])
    path = folder / kind
    if kind == "ms_cxr.json":
        document = {
            "info": {},
            "images": [{"id": 1, "file_name": "d.jpg", "width": 100, "height": 90, "path": "files/d.jpg"}],
            "categories": [{"id": 3, "name": "Edema"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "label_text": "edema"}],
        }
        content, what = mutate.json_text(document, rng)
    elif kind == "radgraph.json":
        entity = {"tokens": "heart", "label": "ANAT-DP", "start_ix": 1, "end_ix": 1, "relations": []}
        seen = {"tokens": "enlarged", "label": "OBS-DP", "start_ix": 3, "end_ix": 3, "relations": [["located_at", "1"]]}
        content, what = mutate.json_text(
            {"s1.txt": {"text": "the heart is enlarged", "entities": {"1": entity, "2": seen}}}, rng
        )
    else:
        tables = {
            "ms_cxr.csv": [
                "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height",
                "d,Edema,edema,files/d.jpg,1,2,30,40,100,90",
            ],
            "rsna.csv": ["patientId,x,y,width,height,Target", "a,1,2,30,40,1", "b,,,,,0"],
            "vindr.csv": [
                "image_id,class_name,x_min,y_min,x_max,y_max",
                "a,Cardiomegaly,1,2,30,40",
                "b,No finding,,,,",
            ],
            "progression.csv": [
                "dicom_id,previous_dicom_id,study_id,subject_id,consolidation_progression,edema_progression",
                "d,e,s1,p1,improving,stable",
            ],
        }
        content, what = mutate.table_text([line.split(",") for line in tables[kind]], rng)
    if rng.random() < 0.06:
        return Made(path, f"{kind}: {mutate.special(path, rng)}", [path.name])
    path.write_bytes(content)
    return Made(path, f"{kind}: {what}", [path.name])


def read_annotation(made: Made) -> Any:
    from hf_medvlm.data.boxes import read_boxes, read_progression
    from hf_medvlm.data.radgraph import read_radgraph

    name = made.target.name
    read: Callable = read_radgraph if "radgraph" in name else read_progression if "progression" in name else read_boxes
    return read(made.target)


def justify_annotation(made: Made, result: Any) -> str | None:
    json.dumps(repr(result))
    return "values are checked one by one; what is left out is named" if result is not None else None


READERS = [
    Reader("tables", make_table, read_table, justify_table),
    Reader("master file", make_master, read_master, justify_master),
    Reader("conversations", make_chat, read_chat, justify_chat),
    Reader("annotations", make_annotation, read_annotation, justify_annotation),
]
