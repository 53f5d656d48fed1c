"""Annotation files of phrase grounding, MS-CXR and RSNA pneumonia, into the boxes of our studies.

Sources: MS-CXR (Boecking et al. 2022, PhysioNet `ms-cxr`), its COCO-like JSON or its CSV; the RSNA Pneumonia Detection
Challenge (Shih et al. 2019), `stage_2_train_labels.csv`. Boxes are left, top, width, height in pixels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.study import Study, StudyBox

MS_CXR_COLUMNS = ("dicom_id", "category_name", "label_text", "x", "y", "w", "h")
RSNA_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")


@dataclass(frozen=True)
class LocatedPhrase:
    """One annotated box.

    Args:
        xywh: left, top, width, height, in pixels of an image of `image_size`.
        finding: CheXpert name.
        image_size: width and height of the image that was annotated, where the file tells.
    """

    phrase: str
    xywh: tuple[float, float, float, float]
    finding: str
    image_size: tuple[int, int] | None = None


Annotations = dict[str, list[LocatedPhrase]]
"""Image id (MIMIC's dicom_id, RSNA's patientId) -> its boxes; none where the file says that nothing is to be found."""


def read_ms_cxr(path: str | Path) -> Annotations:
    """The boxes of an MS-CXR file, `.json` or `.csv`.

    Raises:
        ValueError: another ending, missing columns or keys, a box that is none; with file and line or annotation.
    """
    path = Path(path)
    if path.suffix == ".csv":
        rows = _read_csv(path, MS_CXR_COLUMNS)
    elif path.suffix == ".json":
        rows = _coco_rows(path)
    else:
        raise ValueError(f"{path}: MS-CXR's annotations are a .json or a .csv file, not {path.suffix!r}")
    found: Annotations = {}
    for place, row in rows:
        size = (row.get("image_width"), row.get("image_height"))
        try:
            phrase = LocatedPhrase(
                row["label_text"],
                tuple(float(row[key]) for key in "xywh"),
                row["category_name"],
                (int(size[0]), int(size[1])) if all(size) else None,
            )
            StudyBox(0, phrase.phrase, phrase.xywh)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        found.setdefault(row["dicom_id"], []).append(phrase)
    return found


def read_rsna(path: str | Path) -> Annotations:
    """The boxes of RSNA's `stage_2_train_labels.csv`; images with Target 0 have an empty list.

    Raises:
        ValueError: missing columns, or a row with Target 1 and no box; with file and line.
    """
    found: Annotations = {}
    for place, row in _read_csv(Path(path), RSNA_COLUMNS):
        boxes = found.setdefault(row["patientId"], [])
        if row["Target"].strip() != "1":
            continue
        try:
            box = tuple(float(row[key]) for key in ("x", "y", "width", "height"))
            StudyBox(0, "pneumonia", box)
        except ValueError as error:
            raise ValueError(f"{place}: Target is 1 but the box is none: {error}") from error
        boxes.append(LocatedPhrase("pneumonia", box, "Pneumonia", (1024, 1024)))
    return found


def attach_boxes(
    studies: Iterable[Study], annotations: Mapping[str, list[LocatedPhrase]], image_folder: str | Path | None = None
) -> list[Study]:
    """The studies that have annotated images, with these boxes in place of their own.

    An image is known by its file name without the ending. Boxes were drawn on the original images; where the stored
    ones may be smaller, give `image_folder`, and each annotated image is measured and its boxes scaled.

    Raises:
        ValueError: not one annotated image is among the studies.
    """
    chosen = []
    for study in studies:
        boxes, annotated = [], False
        for number, image in enumerate(study.images):
            phrases = annotations.get(PurePosixPath(image.path).stem)
            if phrases is None:
                continue
            annotated = True
            stored = open_radiograph(Path(image_folder) / image.path).size if image_folder and phrases else None
            for phrase in phrases:
                xywh = phrase.xywh
                if stored and phrase.image_size:
                    across, down = stored[0] / phrase.image_size[0], stored[1] / phrase.image_size[1]
                    xywh = (xywh[0] * across, xywh[1] * down, xywh[2] * across, xywh[3] * down)
                boxes.append(StudyBox(number, phrase.phrase, xywh, phrase.finding))
        if annotated:
            chosen.append(replace(study, boxes=tuple(boxes)))
    if not chosen:
        examples = ", ".join(list(annotations)[:2])
        raise ValueError(
            f"none of the {len(annotations)} annotated images ({examples}, ...) is among the studies; an image is "
            "found by its file name without the ending"
        )
    return chosen


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterable[tuple[str, dict[str, str]]]:
    """(file:line, row) of each line, after checking the header."""
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: no column {', '.join(missing)}; found {', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", row


def _coco_rows(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    """(file and annotation, row in the columns of the CSV) of each annotation of MS-CXR's JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        for entry in content["annotations"]:
            image = images[entry["image_id"]]
            yield (
                f"{path}: annotation {entry['id']}",
                {
                    "dicom_id": PurePosixPath(image["file_name"]).stem,
                    "category_name": categories[entry["category_id"]],
                    "label_text": entry["label_text"],
                    "image_width": image.get("width"),
                    "image_height": image.get("height"),
                    **dict(zip("xywh", entry["bbox"], strict=True)),
                },
            )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not MS-CXR's JSON (categories, images, annotations with bbox and label_text): {error!r}"
        ) from error
