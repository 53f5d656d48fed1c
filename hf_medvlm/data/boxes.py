"""Annotation files beside a corpus: boxes of MS-CXR, RSNA pneumonia and VinDr-CXR, and the progression of MS-CXR-T.

Sources: MS-CXR (Boecking et al. 2022, PhysioNet `ms-cxr`), its COCO-like JSON or its CSV; the RSNA Pneumonia Detection
Challenge (Shih et al. 2019), `stage_2_train_labels.csv`; VinDr-CXR (Nguyen et al. 2022, PhysioNet `vindr-cxr`),
`annotations_*.csv` or Kaggle's `train.csv`; MS-CXR-T (Bannur et al. 2023, PhysioNet `ms-cxr-t`), its temporal
classification CSV. Boxes are left, top, width, height in pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_medvlm.data.fields import id_text
from hf_medvlm.data.files import open_text, read_json
from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.sources.base import Rejected, read_csv
from hf_medvlm.data.study import Study, StudyBox
from hf_medvlm.errors import clipped
from hf_medvlm.labels import CHEXPERT_14

logger = logging.getLogger(__name__)

MS_CXR_COLUMNS = ("dicom_id", "category_name", "label_text", "x", "y", "w", "h")
RSNA_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
VINDR_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
MS_CXR_T_CHANGES = {"improving": "improving", "stable": "stable", "worsening": "worsening"}
VINDR_TO_CHEXPERT = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Lung Opacity": "Lung Opacity",
    "Infiltration": "Lung Opacity",
    "Nodule/Mass": "Lung Lesion",
    "Pleural effusion": "Pleural Effusion",
    "Pleural thickening": "Pleural Other",
    "Pneumothorax": "Pneumothorax",
    "Rib fracture": "Fracture",
    "Clavicle fracture": "Fracture",
}


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


def read_boxes(path: str | Path) -> Annotations:
    """The boxes of whichever of the known files this is: MS-CXR (.json or .csv), RSNA or VinDr-CXR (.csv).

    Raises:
        ValueError: none of them; or what their readers refuse.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_ms_cxr(path)
    with open_text(path) as handle:
        header = {name.strip(' "\r\n') for name in handle.readline().split(",")}
    for columns, read in ((MS_CXR_COLUMNS, read_ms_cxr), (RSNA_COLUMNS, read_rsna), (VINDR_COLUMNS, read_vindr)):
        if header.issuperset(columns):
            return read(path)
    raise ValueError(
        f"{path}:1: no file of boxes that is known; MS-CXR has the columns {', '.join(MS_CXR_COLUMNS)}, RSNA "
        f"{', '.join(RSNA_COLUMNS)}, VinDr-CXR {', '.join(VINDR_COLUMNS)}"
    )


def read_ms_cxr(path: str | Path) -> Annotations:
    """The boxes of an MS-CXR file, `.json` or `.csv`.

    Raises:
        ValueError: another ending, missing columns or keys, a box that is none; with file and line or annotation.
    """
    path = Path(path)
    if path.suffix == ".csv":
        rows: Iterable[tuple[str, Mapping[str, Any]]] = _read_csv(path, MS_CXR_COLUMNS)
    elif path.suffix == ".json":
        rows = _coco_rows(path)
    else:
        raise ValueError(f"{path}: MS-CXR's annotations are a .json or a .csv file, not {path.suffix!r:.100}")
    boxes: Annotations = {}
    for place, row in rows:
        size = (row.get("image_width"), row.get("image_height"))
        corners = [row[key] for key in "xywh"]
        phrase = _located(place, row["label_text"], corners, row["category_name"], size if all(size) else None)
        boxes.setdefault(row["dicom_id"], []).append(phrase)
    return boxes


def read_rsna(path: str | Path) -> Annotations:
    """The boxes of RSNA's `stage_2_train_labels.csv`; images with Target 0 have an empty list.

    Raises:
        ValueError: missing columns, a Target that is neither 0 nor 1, or a row with Target 1 and no box; with the line.
    """
    boxes: Annotations = {}
    for place, row in _read_csv(Path(path), RSNA_COLUMNS):
        image = boxes.setdefault(row["patientId"], [])
        target = id_text(row["Target"], "Target")  # pandas writes 1.0 where the column has gaps
        if target not in ("0", "1"):
            raise ValueError(f"{place}: Target is {clipped(repr(row['Target']))}; it is 1 with a box or 0 without")
        if target == "1":
            corners = [row[key] for key in ("x", "y", "width", "height")]
            image.append(
                _located(f"{place}: Target is 1 but the box is none", "pneumonia", corners, "Pneumonia", (1024, 1024))
            )
    return boxes


def read_vindr(path: str | Path) -> Annotations:
    """The boxes of VinDr-CXR; images with "No finding" have an empty list. The phrase is VinDr's name of the finding.

    Several radiologists drew on each training image; their boxes are kept as they are.

    Raises:
        ValueError: missing columns, or a finding whose box is none; with the line.
    """
    boxes: Annotations = {}
    for place, row in _read_csv(Path(path), VINDR_COLUMNS):
        image = boxes.setdefault(row["image_id"], [])
        if row["class_name"].strip().lower() == "no finding":
            continue
        try:
            left, top, right, bottom = (float(row[key]) for key in VINDR_COLUMNS[2:])
        except ValueError as error:
            raise ValueError(f"{place}: {row['class_name']!r:.100} has no box: {error}") from error
        finding = VINDR_TO_CHEXPERT.get(row["class_name"].strip(), row["class_name"].strip())
        corners = (left, top, right - left, bottom - top)
        image.append(_located(place, row["class_name"].strip(), corners, finding, None))
    return boxes


def _located(place: str, phrase: Any, corners: Iterable[Any], finding: Any, size: Any) -> LocatedPhrase:
    try:
        x, y, w, h = map(float, corners)
        box = StudyBox(0, phrase, (x, y, w, h), finding)
        return LocatedPhrase(box.phrase, box.xywh, finding, (int(size[0]), int(size[1])) if size else None)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {error}") from error


def read_progression(path: str | Path) -> dict[str, dict[str, str]]:
    """MS-CXR-T's temporal classification: image id (and study id, where the file has one) -> finding -> change.

    The columns of findings are those that end in `_progression` (`consolidation_progression`, `pleural_effusion_...`).

    Raises:
        ValueError: no such columns, or a change that is none; with the line.
    """
    path = Path(path)
    known = {name.lower(): name for name in CHEXPERT_14}
    changes: dict[str, dict[str, str]] = {}
    for place, row in _read_csv(path, ("dicom_id",)):
        columns = [name for name in row if name.lower().endswith("_progression")]
        if not columns:
            raise ValueError(f"{path}:1: no column ends in '_progression'; MS-CXR-T has consolidation_progression, ...")
        states: dict[str, str] = {}
        for column in columns:
            word = row[column].strip().lower()
            if word in ("", "nan"):
                continue
            if word not in MS_CXR_T_CHANGES:
                raise ValueError(f"{place}: {column} is {row[column]!r:.100}; use {', '.join(MS_CXR_T_CHANGES)}")
            name = re.sub(r"_progression$", "", column.lower()).replace("_", " ")
            states[known.get(name, name.title())] = MS_CXR_T_CHANGES[word]
        for key in filter(None, (row["dicom_id"].strip(), id_text(row.get("study_id"), "study_id"))):
            changes.setdefault(key, {}).update(states)
    return changes


def attach_progression(studies: Iterable[Study], changes: Mapping[str, Mapping[str, str]]) -> list[Study]:
    """All studies; those with an image or an id in `changes` get these changes as their `progression`.

    Raises:
        ValueError: not one of them is among the studies.
    """
    attached, count = [], 0
    for study in studies:
        keys = [*(PurePosixPath(image.path).stem for image in study.images), study.study_id]
        states = next((changes[key] for key in keys if changes.get(key)), None)
        count += states is not None
        attached.append(replace(study, progression=dict(states)) if states else study)
    if not count:
        raise ValueError(f"none of the images and studies of the progression file ({_some(changes)}) is in the corpus")
    logger.info("progression: %d studies have one", count)
    return attached


def with_boxes(studies: Iterable[Study], annotations: Annotations, image_folder: str | Path) -> list[Study]:
    """All studies; those with annotated images get their boxes, scaled to the stored images (see `attach_boxes`)."""
    every = list(studies)
    boxed = {study.study_id: study for study in attach_boxes(every, annotations, image_folder)}
    logger.info("boxes: %d studies have annotated images", len(boxed))
    return [boxed.get(study.study_id, study) for study in every]


def _some(names: Iterable[str]) -> str:
    shown = [name for name, _ in zip(names, range(2), strict=False)]
    return f"{clipped(', '.join(shown))}, ..." if shown else "it is empty"


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


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, row) of each line, after checking the header.

    Raises:
        ValueError: a missing column, a row of another width, an open quote; with the line.
    """
    rejected: list[Rejected] = []
    for line, row in read_csv(path, columns, rejected):
        yield f"{path}:{line}", row
    if rejected:
        raise ValueError(str(rejected[0]))


def _coco_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and annotation, row in the columns of the CSV) of each annotation of MS-CXR's JSON."""
    try:
        with open_text(path) as handle:
            content = read_json(handle.read(), path)
    except ValueError as error:
        raise ValueError(f"{error}; it is not MS-CXR's JSON") from error
    try:
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
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not MS-CXR's JSON (categories, images, annotations with bbox, label_text): {clipped(repr(error))}"
        ) from error
