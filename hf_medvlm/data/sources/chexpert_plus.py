"""CheXpert Plus -> studies: `df_chexpert_plus_240401.csv`, the images (PNG, JPEG or DICOM) and CheXbert's labels.

Chambon et al. 2024 (arXiv 2405.19538), Stanford AIMI. A row is an image; those of one `patient.../study...` folder are
one study. The corpus has no dates: reports of a patient are numbered in time, and each study's prior is the one with
the next lower number. Reads no pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hf_medvlm.data.fields import id_text
from hf_medvlm.data.files import open_text, read_json
from hf_medvlm.data.sources.base import (
    Corpus,
    EntryError,
    Rejected,
    find_table,
    link_in_order,
    list_folder,
    parse_path,
    parse_state,
    read_csv,
)
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.labels import CHEXPERT_14

SOURCE = "CheXpert Plus"
LICENCE = "Stanford University Dataset Research Use Agreement"
NEEDED = ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "split")
LABELS = ("impression_fixed.json", "findings_fixed.json", "report_fixed.json")
LABEL_FOLDERS = ("chexbert_labels", "CheXbert_Labels", "CheXpert_Labels", "chexpert_labels", "labels", ".")
IMAGE_FOLDERS = ("", "PNG", "png", "CheXpert-v1.0", "CheXpert-v1.0-small", "DICOM")
SUFFIXES = (".png", ".jpg", ".dcm")


def load_chexpert_plus(root: str | Path) -> Corpus:
    """The studies of CheXpert Plus; its `valid` images are the validation split, and test is drawn from the others.

    - `df_chexpert_plus_240401.csv` (any `df_chexpert_plus*.csv`): findings, impression, the clinical history as
      `indication`, comparison; the whole report where it has neither findings nor impression.
    - Images below `PNG/`, `DICOM/`, `CheXpert-v1.0/` or the root itself, as `path_to_image` names them.
    - `chexbert_labels/impression_fixed.json` (or `findings_fixed.json`, `report_fixed.json`) where it is there.

    Raises:
        ValueError: the table is not there or lacks a column; none of the images lies where it says.
    """
    root, corpus = Path(root), Corpus(linked=True, given_splits=frozenset({"validate"}))
    names = [name for name in list_folder(root) if name.startswith("df_chexpert_plus") and name.endswith(".csv")]
    if not names:
        raise ValueError(f"{root}: no CheXpert Plus; wanted is df_chexpert_plus_240401.csv and the images")
    table = root / names[0]
    labels_file = next((file for name in LABELS if (file := find_table(root, LABEL_FOLDERS, name))), None)
    labels = dict(_labels(labels_file, corpus)) if labels_file else {}
    rows = list(read_csv(table, NEEDED, corpus.rejected))
    folder, suffix = _where_images_are(root, table, [row["path_to_image"] for _, row in rows])
    order: dict[str, list[tuple[float, str]]] = defaultdict(list)
    studies: dict[str, tuple[int, Study]] = {}
    for line, row in rows:
        path = row["path_to_image"].strip()
        try:
            study = _study(row, folder, suffix, labels.get(_key(path), {}))
            number = float(row["patient_report_date_order"] or "nan")
        except (EntryError, ValueError) as error:
            reason, detail = getattr(error, "reason", "impossible order"), getattr(error, "detail", str(error))
            corpus.rejected.append(Rejected(str(table), line, path or None, reason, detail))
            continue
        if study.study_id in studies:
            first_line, first = studies[study.study_id]
            both = first.images + study.images
            studies[study.study_id] = first_line, replace(first, images=both, labels=first.labels or study.labels)
        else:
            studies[study.study_id] = line, study
            order[study.patient_id].append((number, study.study_id))
    priors = link_in_order(order)
    for line, study in studies.values():
        images = tuple(sorted(study.images, key=lambda image: not image.is_frontal))
        prior = priors.get(study.study_id)
        corpus.add(replace(study, images=images, prior_study_id=prior), str(table), line)
    return corpus


def _study(row: Mapping[str, str], folder: str, suffix: str, labels: Mapping[str, int | None]) -> Study:
    path = PurePosixPath(parse_path(row["path_to_image"].strip()))
    if len(path.parts) < 4 or not path.parts[-3].startswith("patient"):
        raise EntryError("impossible id", f"{path} is not <split>/patient.../study.../view...")
    patient = id_text(row["deid_patient_id"], "deid_patient_id") or path.parts[-3]
    view = row["ap_pa"].strip().upper() or None
    if row["frontal_lateral"].strip().lower() == "lateral":
        view = "LATERAL"
    findings, impression = _text(row, "section_findings"), _text(row, "section_impression")
    split = row["split"].strip().lower() or path.parts[0]
    return Study(
        study_id=f"{path.parts[-3]}-{path.parts[-2]}",
        patient_id=patient,
        split="validate" if split.startswith("val") else None,
        images=(StudyImage((PurePosixPath(folder) / path.with_suffix(suffix)).as_posix(), view),),
        findings=findings,
        impression=impression,
        report="" if findings or impression else _text(row, "report"),
        indication=_text(row, "section_clinical_history") or _text(row, "section_history"),
        comparison=_text(row, "section_comparison"),
        labels=labels,
        source=SOURCE,
        licence=LICENCE,
    )


def _text(row: Mapping[str, str], column: str) -> str:
    text = row.get(column, "").strip()
    return "" if text.lower() == "nan" else text


def _key(path: str) -> str:
    """`patient.../study.../view...` without its split and ending, which differ between the files."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-3:])


def _labels(path: Path, corpus: Corpus) -> Iterator[tuple[str, dict[str, int | None]]]:
    """Image -> states; one JSON object a line."""
    with open_text(path) as handle:
        for line, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                row = read_json(text, path, line)
                states = {name: parse_state(name, row.get(name)) for name in CHEXPERT_14}
                yield _key(row["path_to_image"]), states
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                detail = getattr(error, "detail", None) or f"a line is an object with path_to_image: {error}"
                corpus.rejected.append(Rejected(str(path), line, None, "impossible label", detail))


def _where_images_are(root: Path, table: Path, paths: list[str]) -> tuple[str, str]:
    """The folder that `path_to_image` starts in, and the images' ending: found out from the first that are there."""
    for path in paths[:1000]:
        for folder in IMAGE_FOLDERS:
            for suffix in dict.fromkeys((PurePosixPath(path).suffix, *SUFFIXES)):
                if path and (root / folder / PurePosixPath(path).with_suffix(suffix)).is_file():
                    return folder, suffix
    shown = json.dumps(paths[0]) if paths else "it has no rows"
    raise ValueError(f"{table}: none of its first images ({shown}, ...) lies in {root}, in PNG/, DICOM/ or train/")
