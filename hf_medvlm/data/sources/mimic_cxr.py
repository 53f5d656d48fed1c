"""MIMIC-CXR and MIMIC-CXR-JPG, as PhysioNet gives them -> studies.

Johnson et al. 2019, "MIMIC-CXR" (Scientific Data 6:317) and "MIMIC-CXR-JPG" (arXiv 1901.07042). Reads the tables of
MIMIC-CXR-JPG, the reports of MIMIC-CXR (`mimic_reports.py`), and no pixels; the images may be DICOM or JPG.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from hf_medvlm.data.sources.base import (
    Corpus,
    EntryError,
    Rejected,
    find_priors,
    list_folder,
    parse_date,
    parse_state,
    read_columns,
)
from hf_medvlm.data.sources.mimic_reports import Index, index_reports, read_reports
from hf_medvlm.data.study import Study, StudyImage
from hf_medvlm.labels import CHEXPERT_14, SPLITS

logger = logging.getLogger(__name__)

FRONTAL, LATERAL = ("AP", "PA"), ("LATERAL", "LL")
"""ViewPosition as MIT-LCP/mimic-cxr maps it; all else (oblique, decubitus, empty) is neither."""

REPORTS_ZIP = "mimic-cxr-reports.zip"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
LARGE = 1 << 20
"""From so many bytes of metadata on, other processes help to read the tables."""

Labels = dict[str, int | None]

_IDS = re.compile(r"1\d{7} 5\d{7}")
_IMAGE_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")


@dataclass(slots=True)
class _Found:
    """One study while its rows of the metadata are read; (image id, view) of each image."""

    patient_id: str
    line: int
    date: str
    frontal: list[tuple[str, str]] = field(default_factory=list)
    lateral: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class MimicTables:
    """All of the corpus but the texts: what is needed to read the reports of any of its studies.

    `study_ids` are those that have a frontal image and a report, by patient; `rejected` says what became of the rest.
    """

    metadata: str
    reports: Path
    index: Index
    by_study: Mapping[str, _Found]
    splits: Mapping[str, str]
    labels: Mapping[str, Labels]
    suffix: str
    study_ids: list[str]
    rejected: list[Rejected]

    def blocks(self, size: int) -> list[list[str]]:
        """The study ids in blocks of at least `size`, no patient in two of them."""
        blocks: list[list[str]] = [[]]
        patient = None
        for study_id in self.study_ids:
            if len(blocks[-1]) >= size and self.by_study[study_id].patient_id != patient:
                blocks.append([])
            patient = self.by_study[study_id].patient_id
            blocks[-1].append(study_id)
        return blocks


def read_tables(root: str | Path, suffix: str | None = None) -> MimicTables:
    """Read the tables, and find the reports.

    Args:
        root: holds `mimic-cxr-2.x.x-metadata.csv.gz` (also -split and -chexpert, each optional; unpacked will do) and
            `mimic-cxr-reports.zip` or the reports in `files/`. Image paths are relative to it.
        suffix: of the image files, ".jpg" or ".dcm"; by default that of the first of 1000 studies which is there.

    Raises:
        ValueError: no metadata or no reports; a broken table, with its line; a study in two splits.
    """
    root = Path(root)
    metadata, split_table, label_table = (_table(root, name) for name in ("metadata", "split", "chexpert"))
    if metadata is None:
        raise ValueError(
            f"{root}: no mimic-cxr-2.x.x-metadata.csv.gz; it comes with MIMIC-CXR-JPG and is needed for DICOM too "
            "(views and dates): put it there"
        )
    reports = next((path for path in (root / REPORTS_ZIP, root / "files") if path.exists()), None)
    if reports is None:
        raise ValueError(f"{root}: no {REPORTS_ZIP} and no folder files/ with the reports; they come with MIMIC-CXR")
    if split_table is None:
        logger.warning("no mimic-cxr-2.x.x-split.csv.gz: the split is drawn by patient, and is not the official one")
    if label_table is None:
        logger.warning("no mimic-cxr-2.x.x-chexpert.csv.gz: the studies have no labels")

    rejected: list[Rejected] = []
    if metadata.stat().st_size < LARGE:
        by_study, index = _read_metadata(metadata, rejected), index_reports(reports)
        (splits, bad_splits), (labels, bad_labels) = _read_splits(split_table), _read_labels(label_table)
    else:
        with ProcessPoolExecutor(2) as others:
            later_index = others.submit(index_reports, reports)
            later_labels = others.submit(_read_labels, label_table)
            later_splits = others.submit(_read_splits, split_table)
            by_study = _read_metadata(metadata, rejected)
            (labels, bad_labels), (splits, bad_splits) = later_labels.result(), later_splits.result()
            index = later_index.result()
    rejected += bad_splits + bad_labels

    usable = {study_id: study for study_id, study in by_study.items() if study.frontal and study_id in index}
    for study_id, study in by_study.items():
        if study_id not in index:
            rejected.append(Rejected(str(metadata), study.line, study_id, "no report", f"not in {reports.name}"))
        elif not study.frontal:
            rejected.append(Rejected(str(metadata), study.line, study_id, "no frontal image"))
    strays = sorted(index.keys() - by_study.keys())
    rejected += [Rejected(str(reports), None, study_id, "report without images") for study_id in strays]
    return MimicTables(
        metadata=str(metadata),
        reports=reports,
        index=index,
        by_study=by_study,
        splits=splits,
        labels=labels,
        suffix=suffix or _find_suffix(root, by_study),
        study_ids=sorted(usable, key=lambda study_id: (usable[study_id].patient_id, study_id)),
        rejected=rejected,
    )


def load_studies(tables: MimicTables, study_ids: Sequence[str]) -> Corpus:
    """Read the reports of these studies, and put the studies together; priors are looked for among them.

    Laterals stand behind the frontals in `images`. `findings`, `impression`, `indication` and `comparison` are the
    official parser's sections; where a report has neither findings nor impression, `report` is its last paragraph.
    `labels` are CheXpert's as published (-1 is uncertain). The split is the official one where its file is there.
    """
    corpus = Corpus(linked=True)
    priors = find_priors((tables.by_study[name].patient_id, name, tables.by_study[name].date) for name in study_ids)
    for report in read_reports(tables.reports, tables.index, study_ids):
        study_id = report.study_id
        study = tables.by_study[study_id]
        if report.error:
            corpus.rejected.append(Rejected(str(tables.reports), None, study_id, "unreadable report", report.error))
            continue
        folder = _folder(study.patient_id, study_id)
        images = study.frontal + study.lateral
        made = Study(
            study_id=study_id,
            patient_id=study.patient_id,
            split=tables.splits.get(study_id),
            images=tuple([_image(f"{folder}/{image}{tables.suffix}", view) for image, view in images]),
            findings=report.findings,
            impression=report.impression,
            report="" if report.findings or report.impression else report.last_paragraph,
            indication=report.indication,
            labels=tables.labels.get(study_id, {}),
            prior_study_id=priors.get(study_id),
            study_date=study.date,
            source="MIMIC-CXR",
            licence=LICENCE,
            comparison=report.comparison,
        )
        corpus.add(made, tables.metadata, study.line)
    return corpus


def _table(root: Path, name: str) -> Path | None:
    """The newest `mimic-cxr-2.x.x-<name>.csv.gz` of the root, or the unpacked one."""
    table = re.compile(rf"mimic-cxr-2\.\d+\.\d+-{name}\.csv(?:\.gz)?")
    tables = [file for file in list_folder(root) if table.fullmatch(file)]
    return root / tables[-1] if tables else None


def _image(path: str, view: str) -> StudyImage:
    """A `StudyImage` whose path is made of ids that were checked: to look for `..` in 377,110 of them takes 2 s."""
    image = object.__new__(StudyImage)
    image.__dict__.update(path=path, view=view)
    return image


def _folder(patient_id: str, study_id: str) -> str:
    return f"files/p{patient_id[:2]}/p{patient_id}/s{study_id}"


def _find_suffix(root: Path, by_study: Mapping[str, _Found]) -> str:
    """The ending of the first image that is there, of the first 1000 studies; ".jpg" where there is none."""
    for study_id, study in islice(by_study.items(), 1000):
        for image, _ in study.frontal + study.lateral:
            for suffix in (".jpg", ".dcm"):
                if (root / _folder(study.patient_id, study_id) / f"{image}{suffix}").exists():
                    return suffix
    return ".jpg"


def _read_metadata(path: Path, rejected: list[Rejected]) -> dict[str, _Found]:
    """Study id -> its images. An image of no use, and a row that cannot be, goes to `rejected`."""
    by_study: dict[str, _Found] = {}
    seen: set[str] = set()
    for line, (image, patient, study_id, view, day, time) in read_columns(path, _METADATA, rejected):
        try:
            study = by_study.get(study_id)
            if not _IMAGE_ID.fullmatch(image) or (study is None and not _IDS.fullmatch(f"{patient} {study_id}")):
                raise EntryError(
                    "impossible id", f"subject {patient!r:.100}, study {study_id!r:.100}, image {image!r:.100}"
                )
            if image in seen:
                raise EntryError("duplicate row", f"image {image}")
            seen.add(image)
            if study is None:
                study = by_study[study_id] = _Found(patient, line, parse_date(day, time))
            elif study.patient_id != patient:
                raise EntryError("two patients", f"{patient}, but {study.patient_id} on line {study.line}")
            if view in FRONTAL:
                study.frontal.append((image, view))
            elif view in LATERAL:
                study.lateral.append((image, view))
            else:
                raise EntryError("neither frontal nor lateral", f"image {image}, view {view or 'empty'}")
        except EntryError as error:
            rejected.append(Rejected(str(path), line, study_id, error.reason, error.detail))
    return by_study


def _read_splits(path: Path | None) -> tuple[dict[str, str], list[Rejected]]:
    """Study id -> its official split; empty where there is no table."""
    splits: dict[str, str] = {}
    rejected: list[Rejected] = []
    rows = read_columns(path, ("study_id", "subject_id", "split"), rejected) if path else ()
    for line, (study_id, patient, split) in rows:
        if split not in SPLITS:
            raise ValueError(f"{path}:{line}: split {split!r:.100} is none of {', '.join(SPLITS)}")
        if splits.setdefault(study_id, split) != split:
            raise ValueError(
                f"{path}:{line}: patient {patient:.100}, study {study_id:.100}, is in {splits[study_id]} and in {split}"
            )
    return splits, rejected


def _read_labels(path: Path | None) -> tuple[dict[str, Labels], list[Rejected]]:
    """Study id -> CheXpert's 14 states; studies with equal states share one dictionary."""
    labels: dict[str, Labels] = {}
    rejected: list[Rejected] = []
    equal: dict[str, Labels] = {}
    for line, (study_id, *cells) in read_columns(path, ("study_id", *CHEXPERT_14), rejected) if path else ():
        states = ",".join(cells)
        try:
            if states not in equal:
                equal[states] = {name: parse_state(name, cell) for name, cell in zip(CHEXPERT_14, cells, strict=True)}
            labels[study_id] = equal[states]
        except EntryError as error:
            rejected.append(Rejected(str(path), line, study_id, error.reason, error.detail))
    return labels, rejected
