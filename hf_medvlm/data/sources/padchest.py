"""PadChest -> studies: `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` and its folders of PNGs.

Bustos et al. 2020 (Medical Image Analysis 66, arXiv 1901.07441), BIMCV. Reports are Spanish, in lower case and without
accents; the labels are PadChest's own 174 terms, given by physicians or by a network. They are kept by their own names,
but for those that CheXpert's 14 have too. Reads no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data.fields import id_text
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, list_folder, parse_date, parse_path, read_csv
from hf_medvlm.data.sources.cells import as_list, text_of
from hf_medvlm.data.study import Study, StudyImage

SOURCE = "PadChest"
LICENCE = "PadChest Dataset Research Use Agreement"
NEEDED = ("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "Projection", "Report", "Labels")
VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL", "COSTAL": "COSTAL"}
CHEXPERT = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "consolidation": "Consolidation",
    "pulmonary edema": "Edema",
    "pleural effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "normal": "No Finding",
}
"""Terms that mean what one of CheXpert's 14 means. A study of which labels are known and that has none of them is
without it; of the other terms only the present ones are written."""
NO_FINDING = ("exclude", "unchanged", "suboptimal study", "")


def load_padchest(root: str | Path) -> Corpus:
    """The studies of PadChest, several images each; priors go by `StudyDate_DICOM`, to the day.

    Images lie in `<ImageDir>/<ImageID>` below the root or below `images/`, or all in one of these.

    Raises:
        ValueError: the table is not there or lacks a column.
    """
    root, corpus = Path(root), Corpus()
    names = [name for name in list_folder(root) if name.upper().startswith("PADCHEST_CHEST_X_RAY_IMAGES_LABELS")]
    names = [name for name in names if name.endswith((".csv", ".csv.gz"))]
    if not names:
        raise ValueError(
            f"{root}: no PadChest; wanted is PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the images"
        )
    table = root / names[0]
    places: dict[str, set[str]] = {}
    studies: dict[str, tuple[int, Study]] = {}
    for line, row in read_csv(table, NEEDED, corpus.rejected):
        name = row["ImageID"].strip()
        try:
            study = _study(row, _find(root, row["ImageDir"], name, places))
        except (EntryError, ValueError) as error:
            reason = getattr(error, "reason", "impossible id")
            detail = getattr(error, "detail", str(error))
            corpus.rejected.append(Rejected(str(table), line, name or None, reason, detail))
            continue
        first_line, first = studies.get(study.study_id, (line, replace(study, images=())))
        if study.images[0] in first.images:
            corpus.rejected.append(Rejected(str(table), line, study.study_id, "duplicate row", name))
            continue
        studies[study.study_id] = first_line, replace(first, images=first.images + study.images)
    for line, study in studies.values():
        images = tuple(sorted(study.images, key=lambda image: not image.is_frontal))
        corpus.add(replace(study, images=images), str(table), line)
    return corpus


def _study(row: Mapping[str, str], path: str) -> Study:
    projection = row["Projection"].strip()
    if projection not in VIEWS:
        raise EntryError("no chest view", f"Projection is {projection or 'empty'!r:.100}; used are {', '.join(VIEWS)}")
    terms = [text_of(term).lower() for term in as_list(row["Labels"])]
    if "exclude" in terms:
        raise EntryError("no chest view", "PadChest's label is 'exclude'")
    present = [term for term in terms if term not in (*NO_FINDING, "nan")]
    labels: dict[str, int | None] = dict.fromkeys(CHEXPERT.values(), 0) if present else {}
    labels |= {CHEXPERT.get(term, term): 1 for term in present}
    date = id_text(row["StudyDate_DICOM"], "StudyDate_DICOM")
    report = row["Report"].strip()
    return Study(
        study_id=id_text(row["StudyID"], "StudyID"),
        patient_id=id_text(row["PatientID"], "PatientID"),
        images=(StudyImage(path, VIEWS[projection]),),
        report="" if report.lower() == "nan" else report,
        labels=labels,
        study_date=parse_date(date) if date else None,
        source=SOURCE,
        licence=LICENCE,
        extra={"language": "es"},
    )


def _find(root: Path, folder: str, name: str, places: dict[str, set[str]]) -> str:
    """The path of an image; folders are listed once."""
    if not name:
        raise EntryError("no image", "ImageID is empty")
    folder = id_text(folder, "ImageDir")
    for place in filter(None, (folder, f"images/{folder}", "images", ".")):
        if place not in places:
            places[place] = set(list_folder(root / place)) if (root / place).is_dir() else set()
        if name in places[place]:
            return parse_path(name if place == "." else f"{place}/{name}")
    raise EntryError("image not on disk", f"{folder}/{name}")
