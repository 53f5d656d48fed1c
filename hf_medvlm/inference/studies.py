"""Files that someone has -> studies to be told about: a folder, one file, a table, a master file, ReXrank's JSON.

Reads headers and names only. Identifiers of a DICOM file group its images and never leave this module: a study is named
by where its files lie.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_medvlm.data.files import cache_folder, load_json
from hf_medvlm.data.images import DICOM_SUFFIXES
from hf_medvlm.data.load import is_master_file
from hf_medvlm.data.parquet import is_parquet, iter_parquet
from hf_medvlm.data.sources.base import Rejected, link_priors
from hf_medvlm.data.sources.table import load_table
from hf_medvlm.data.study import Study, StudyImage, iter_jsonl
from hf_medvlm.errors import clipped

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".parquet", ".gz")
LATERAL = "LATERAL"
_LATERAL_WORDS, _FRONTAL_WORDS = {"lateral", "lat", "ll"}, {"pa": "PA", "ap": "AP"}


@dataclass(frozen=True)
class NewStudies:
    """Studies without a text that counts.

    Args:
        studies: in the order in which they are answered for.
        image_folder: what their image paths are relative to.
        name: of where they came from, for the page.
        rejected: entries that are no study, and why.
    """

    studies: Sequence[Study]
    image_folder: Path
    name: str
    rejected: Sequence[Rejected] = field(default_factory=tuple)


def find_studies(
    source: str | Path,
    image_folder: str | Path | None = None,
    image_column: str | None = None,
    folder_is_study: bool = False,
    previous: str | Path | None = None,
) -> NewStudies:
    """The studies of `source`.

    Args:
        source: a folder of images (DICOM files of one study count as one; any other file is a study), one image, a
            table with an image column (.csv, .tsv, .jsonl, .parquet) or a master file; their texts are not looked at.
        image_folder: what the paths of a table or master file are relative to; by default the folder it lies in.
        folder_is_study: the images that lie in one folder are the views of one study.
        previous: one image: the radiograph before it.

    Raises:
        ValueError: there is no such file, or nothing in it that could be an image.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: there is no such file or folder; give images, a table or a master file")
    if previous is not None and not path.is_file():
        raise ValueError(f"--previous goes with one image; in a table or master file {source}, name prior studies")
    if path.is_dir():
        return _folder(path, folder_is_study)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return _one_file(path, previous)
    folder = Path(image_folder) if image_folder else path.parent
    if not folder.is_dir():
        raise ValueError(f"image folder {folder} does not exist; give the folder that image paths start in")
    if is_master_file(str(path)):
        return _master(path, folder)
    exported = cache_folder() / "exported" / str(path).strip("/.").replace("/", "--")
    corpus = load_table(path, image_column, image_folder=folder, cache_folder=exported, needs_text=False)
    studies = link_priors(corpus.studies, corpus.linked)
    return NewStudies(studies, corpus.image_folder or folder, path.name, tuple(corpus.rejected))


def _master(path: Path, folder: Path) -> NewStudies:
    studies: list[Study] = []
    rejected: list[Rejected] = []
    lines: dict[str, int] = {}
    for line, record in iter_parquet(path) if is_parquet(path) else iter_jsonl(path):
        if isinstance(record, ValueError):
            rejected.append(Rejected(str(path), line, None, "no study", str(record)))
        elif record.study_id in lines:
            detail = f"stands already on line {lines[record.study_id]}"
            rejected.append(Rejected(str(path), line, record.study_id, "duplicate study_id", detail))
        else:
            lines[record.study_id] = line
            studies.append(record)
    if not studies:
        raise ValueError(f"{path}: no study in it; the first line: {rejected[0] if rejected else 'none'}")
    return NewStudies(studies, folder, path.name, tuple(rejected))


def _one_file(path: Path, previous: str | Path | None) -> NewStudies:
    image = StudyImage(path.name, _header(path)[1] or None)
    study = Study(path.stem, path.stem, images=(image,))
    if previous is None:
        return NewStudies((study,), path.parent, path.name)
    before = Path(previous)
    if not before.is_file():
        raise ValueError(f"--previous {previous}: there is no such file")
    shared = Path(os.path.commonpath([path.absolute().parent, before.absolute().parent]))
    image = replace(image, path=path.absolute().relative_to(shared).as_posix())
    prior = Study(
        f"{path.stem} (previous)", path.stem, images=(StudyImage(before.absolute().relative_to(shared).as_posix()),)
    )
    # the prior is among the studies so that it is found, and is told about too
    return NewStudies((replace(study, images=(image,), prior_study_id=prior.study_id), prior), shared, path.name)


def _folder(folder: Path, folder_is_study: bool) -> NewStudies:
    groups: dict[str, list[StudyImage]] = defaultdict(list)
    rejected = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        kind, view, uid = _header(path)
        if kind == "other":
            rejected.append(Rejected(str(path), None, None, "no image", "not a DICOM, PNG, JPEG, BMP or WebP file"))
            continue
        key = f"folder {path.parent}" if folder_is_study else f"uid {uid}" if uid else f"file {name}"
        groups[key].append(StudyImage(name, view or None))
    if not groups:
        files = f"{len(rejected)} other file(s)" if rejected else "no file"
        raise ValueError(f"{folder}: no image in it ({files}); PNG, JPEG, BMP, WebP and DICOM are read")
    studies, names = [], set()
    for images in groups.values():
        name = _study_name([image.path for image in images])
        if name in names:
            name = images[0].path
        names.add(name)
        studies.append(Study(name, name, images=tuple(sorted(images, key=lambda image: not image.is_frontal))))
    return NewStudies(studies, folder, folder.name, tuple(rejected))


def _study_name(paths: list[str]) -> str:
    """Where the study lies: its file without suffix, or the folder that its files share."""
    if len(paths) == 1:
        return str(Path(paths[0]).with_suffix(""))
    shared = os.path.commonpath([os.path.dirname(path) or "." for path in paths])
    return shared if shared not in (".", "") else str(Path(paths[0]).with_suffix(""))


def _header(path: Path) -> tuple[str, str, str]:
    """(picture, dicom or other; view or ""; StudyInstanceUID or "") of a file, from its head alone."""
    suffix = path.suffix.lower()
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    view = LATERAL if words & _LATERAL_WORDS else next((_FRONTAL_WORDS[w] for w in words if w in _FRONTAL_WORDS), "")
    if suffix in PICTURE_SUFFIXES:
        return "picture", view, ""
    try:
        with open(path, "rb") as handle:
            is_dicom = handle.read(132)[128:] == b"DICM"
    except OSError:
        return ("dicom" if suffix in DICOM_SUFFIXES else "other"), view, ""
    if not is_dicom and suffix not in DICOM_SUFFIXES:
        return "other", view, ""
    uid, position = _dicom_header(path)
    return "dicom", {"LL": LATERAL, "RL": LATERAL, "LATERAL": LATERAL}.get(position, position) or view, uid


def _dicom_header(path: Path) -> tuple[str, str]:
    """(StudyInstanceUID, ViewPosition); empty where the file does not say, or cannot be read at all."""
    import pydicom

    tags = ["StudyInstanceUID", "ViewPosition"]
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
        return str(header.get("StudyInstanceUID") or ""), str(header.get("ViewPosition") or "").upper()
    except Exception:  # on bytes that others wrote pydicom raises any kind of error; reading the pixels will name it
        return "", ""


# -- ReXrank ----------------------------------------------------------------------------------------------------------


def read_rexrank(path: str | Path, image_folder: str | Path | None = None) -> tuple[NewStudies, dict[str, Any]]:
    """The studies of a ReXrank file, and the file itself, which goes out again with a `model_prediction` for each.

    Each record names its images in `image_path` (the frontal one in `key_image_path`, views in `frontal_lateral`), or
    in `dicom_id` and `img_root_dir`, MIMIC-CXR-JPG's layout. `context` holds the indication. Texts are not looked at.

    Raises:
        ValueError: no JSON object of objects, or a record without images; the message names the study.
    """
    path = Path(path)
    folder = Path(image_folder) if image_folder else path.parent
    if not folder.is_dir():
        raise ValueError(f"image folder {folder} does not exist; give the folder that image paths start in")
    records = load_json(path)
    if not isinstance(records, dict) or not records or not all(isinstance(r, dict) for r in records.values()):
        raise ValueError(f"{path}: ReXrank's file is an object, study id -> {{image_path, context, ...}}")
    studies = []
    for study_id, record in records.items():
        try:
            studies.append(_rexrank_study(study_id, record))
        except ValueError as error:
            raise ValueError(f"{path}: study {study_id!r:.100}: {error}") from error
    return NewStudies(studies, folder, path.name), records


def _rexrank_study(study_id: str, record: Mapping[str, Any]) -> Study:
    paths = _listed(record, "image_path") or [
        f"{str(record.get('img_root_dir', '')).strip('/')}/{name}.jpg".lstrip("/")
        for name in _listed(record, "dicom_id")
    ]
    paths = [path.removeprefix("./").lstrip("/") for path in paths]
    if not paths:
        raise ValueError("no image_path (and no dicom_id); a record names its images")
    views = [str(view).lower() for view in _listed(record, "frontal_lateral")]
    views += [""] * (len(paths) - len(views))
    key = str(record.get("key_image_path") or "").removeprefix("./").lstrip("/")
    images = [
        StudyImage(path, LATERAL if view.startswith("lat") and path != key else None)
        for path, view in zip(paths, views, strict=False)
    ]
    images.sort(key=lambda image: (image.path != key, not image.is_frontal))
    context = re.search(r"Indication:\s*(.*?)\s*(?:Comparison:|</context>|$)", str(record.get("context") or ""), re.S)
    return Study(study_id, study_id, images=tuple(images), indication=context.group(1) if context else "")


def _listed(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key) or []
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(part, str) for part in listed):
        raise ValueError(f"{key} must be a text or a list of texts, found {clipped(value)}")
    return listed
