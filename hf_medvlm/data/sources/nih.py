"""NIH ChestX-ray14 -> studies: `Data_Entry_2017*.csv` and its images, or the small table of the same images.

Wang et al. 2017 (CVPR, arXiv 1705.02315). The corpus has no reports: its labels were read from them by a program. A
sentence made of these labels stands in as `report`, and says so; it is no radiologist's text. Follow-ups of a patient
are numbered in time and have no date: each study's prior is the one with the next lower number. Reads no pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data.fields import id_text
from hf_medvlm.data.files import open_text
from hf_medvlm.data.sources.base import (
    Corpus,
    EntryError,
    Rejected,
    link_in_order,
    list_folder,
    parse_path,
    read_csv,
)
from hf_medvlm.data.study import Study, StudyImage

SOURCE = "NIH ChestX-ray14"
LICENCE = "NIH Clinical Center: free to use, acknowledge the NIH Clinical Center and cite Wang et al. 2017"
FINDINGS = (
    "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Hernia Infiltration Mass Nodule "
    "Pleural_Thickening Pneumonia Pneumothorax"
).split()
NO_FINDING = "No Finding"
CHEXPERT = {
    "Effusion": "Pleural Effusion",
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
}
"""Labels that CheXpert's 14 call otherwise; Mass and Nodule are both lung lesions there."""

OFFICIAL = {
    "image": "Image Index",
    "patient": "Patient ID",
    "follow_up": "Follow-up #",
    "view": "View Position",
    "labels": "Finding Labels",
}
SMALL = {"image": "image", "patient": "patient", "follow_up": "follow_up", "view": "view", "labels": "labels"}


def load_nih(root: str | Path) -> Corpus:
    """The studies of either layout, each with one image; priors are linked by the follow-up's number.

    - Official: `Data_Entry_2017*.csv`; images in `images/` or `images_001/images/` and so on; the official lists
      `train_val_list.txt` and `test_list.txt`, where they are there, give the test split.
    - Small: `studies.csv` with image, patient, follow_up, view, labels, and `images/`.

    Raises:
        ValueError: neither is there; a table without its columns.
    """
    root, corpus = Path(root), Corpus(linked=True)
    names = list_folder(root)
    table = next((name for name in names if name.startswith("Data_Entry_2017") and name.endswith(".csv")), None)
    columns = OFFICIAL if table else SMALL
    if table is None and "studies.csv" not in names:
        raise ValueError(f"{root}: no NIH ChestX-ray14; wanted is Data_Entry_2017*.csv (or studies.csv) and images")
    path = root / (table or "studies.csv")
    places = _places(root)
    tested = _listed(root / "test_list.txt")
    order: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for line, row in read_csv(path, columns.values(), corpus.rejected):
        name = row[columns["image"]].strip()
        try:
            study, follow_up = _study(row, columns, places)
            if study.study_id in corpus.places:
                raise EntryError("duplicate row", f"image {name}")
        except EntryError as error:
            corpus.rejected.append(Rejected(str(path), line, name or None, error.reason, error.detail))
            continue
        corpus.add(replace(study, split="test") if name in tested else study, str(path), line)
        order[study.patient_id].append((follow_up, study.study_id))
    if tested:
        corpus.given_splits = frozenset({"test"})
        held = {study.patient_id for study in corpus.studies if study.split == "test"}
        corpus.studies = [replace(s, split="test") if s.patient_id in held else s for s in corpus.studies]
    priors = link_in_order(order)
    corpus.studies = [replace(study, prior_study_id=priors.get(study.study_id)) for study in corpus.studies]
    return corpus


def _study(row: Mapping[str, str], columns: Mapping[str, str], places: Mapping[str, str]) -> tuple[Study, int]:
    name, patient = row[columns["image"]].strip(), id_text(row[columns["patient"]], "patient")
    number = id_text(row[columns["follow_up"]], "follow_up")
    if not patient or not number.isdigit():
        raise EntryError("impossible id", f"patient {patient!r:.100}, follow-up {number!r:.100}")
    words = [word.strip() for word in row[columns["labels"]].split("|") if word.strip()]
    unknown = [word for word in words if word not in (*FINDINGS, NO_FINDING)]
    if not words or unknown:
        raise EntryError("impossible label", f"{row[columns['labels']]!r:.100}; NIH's labels are {', '.join(FINDINGS)}")
    present = [word for word in words if word != NO_FINDING]
    labels: dict[str, int | None] = {CHEXPERT.get(word, word): 0 for word in FINDINGS}
    labels |= {CHEXPERT.get(word, word): 1 for word in present} | {NO_FINDING: int(not present)}
    shown = ", ".join(word.replace("_", " ").lower() for word in present) or "no finding"
    view = row[columns["view"]].strip().upper() or None
    path = places.get(name) or f"images/{parse_path(name)}"
    study = Study(
        study_id=Path(name).stem,
        patient_id=patient,
        images=(StudyImage(path, view),),
        report=f"Labels mined from the report, not its text: {shown}.",
        labels=labels,
        source=SOURCE,
        licence=LICENCE,
        extra={"follow_up": int(number)},
    )
    return study, int(number)


def _places(root: Path) -> dict[str, str]:
    """File name -> path below the root; the official archives unpack into twelve folders."""
    folders = [
        folder
        for name in list_folder(root)
        if name.startswith("images") and (root / name).is_dir()
        for folder in ((root / name / "images") if (root / name / "images").is_dir() else root / name,)
    ]
    return {name: (folder / name).relative_to(root).as_posix() for folder in folders for name in list_folder(folder)}


def _listed(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with open_text(path) as handle:
        return set(handle.read().split())
