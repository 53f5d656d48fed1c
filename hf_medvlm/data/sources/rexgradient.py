"""ReXGradient-160K -> studies: `metadata/` as the Hub serves it, and the images of `deid_png/`.

Zhang et al. 2025 (arXiv 2505.00228), rajpurkarlab/ReXGradient-160K: 160,000 studies of 79 sites of one provider, split
by patient. Reads no pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_medvlm.checked import either, many, record, text, words
from hf_medvlm.data.fields import SPLIT_NAMES, id_text
from hf_medvlm.data.files import open_text, read_json
from hf_medvlm.data.sources.base import (
    Corpus,
    EntryError,
    Rejected,
    list_folder,
    parse_date,
    parse_path,
    read_csv,
)
from hf_medvlm.data.sources.cells import as_list, pair_views, text_of
from hf_medvlm.data.study import Study, StudyImage

SOURCE = "ReXGradient-160K"
LICENCE = "ReXGradient-160K licence: non-commercial research"
_TEXTS = "id PatientID StudyInstanceUid AccessionNumber StudyDate Findings Impression Indication Comparison".split()
_LISTS = dict.fromkeys(("ImagePath", "ImageViewPosition"), either(many(words), text))
RECORD = record(**dict.fromkeys(_TEXTS, text), **_LISTS)
"""What a study's record may hold."""


def load_rexgradient(root: str | Path) -> Corpus:
    """The studies of the three official splits; several images are one study, priors go by `StudyDate`.

    - `metadata/{train,valid,test}_metadata_view_position.json` (with the views), `..._metadata.json` or `.csv`.
    - `deid_png/GRDN.../<accession>/studies/<uid>/series/<uid>/instances/<uid>.png`, as `ImagePath` names them; where a
      table has no `ImagePath`, all images of the study's folder.

    Raises:
        ValueError: no such table, or one that is broken; none of the images of `deid_png` is there.
    """
    root, corpus = Path(root), Corpus()
    tables = _tables(root)
    if not tables:
        raise ValueError(
            f"{root}: no ReXGradient-160K; wanted is metadata/train_metadata*.json (or .csv) and deid_png/"
        )
    if not (root / "deid_png").is_dir():
        raise ValueError(
            f"{root}: no deid_png/; join and unpack the parts: cat deid_png.part* | tar -I zstd -xf - -C {root}"
        )
    for split, table in tables.items():
        for line, row in _rows(table, corpus):
            study_id = text_of(row.get("StudyInstanceUid") or row.get("id")) or None
            try:
                study = _study(row, split, root)
                if study.study_id in corpus.places:
                    raise EntryError("duplicate row", study.study_id)
                corpus.add(study, str(table), line)
            except EntryError as error:
                corpus.rejected.append(Rejected(str(table), line, study_id, error.reason, error.detail))
            except ValueError as error:
                corpus.rejected.append(Rejected(str(table), line, study_id, "impossible id", str(error)))
    return corpus


def _tables(root: Path) -> dict[str, Path]:
    """Split -> its table; of several the one with views, then JSON."""
    folder = root / "metadata" if (root / "metadata").is_dir() else root
    tables: dict[str, Path] = {}
    endings = ("_metadata_view_position.json", "_metadata.json", "_metadata.csv", "_metadata_view_position.csv")
    names = list_folder(folder)
    for ending in endings:
        for name in names:
            split = SPLIT_NAMES.get(name.removesuffix(ending)) if name.endswith(ending) else None
            if split:
                tables.setdefault(split, folder / name)
    return tables


def _rows(path: Path, corpus: Corpus) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
    """(line, row) of a CSV; in JSON an object of id -> row, or a list of rows, has no lines."""
    if path.suffix == ".csv":
        yield from read_csv(path, ("Findings", "Impression"), corpus.rejected)
        return
    with open_text(path) as handle:
        content = read_json(handle.read(), path)
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: an object of studies by their id, or a list of studies, is wanted")
    if isinstance(content, dict):
        rows = [{"id": name, **row} for name, row in content.items()]
    yield from ((None, row) for row in rows)


def _study(row: Mapping[str, Any], split: str, root: Path) -> Study:
    try:
        RECORD(row, "the record:")
    except ValueError as error:
        raise EntryError("wrong layout", str(error)) from error
    name = text_of(row.get("id"))
    patient = id_text(row.get("PatientID"), "PatientID") or name.split("_")[0].removeprefix("p")
    study_id = text_of(row.get("StudyInstanceUid")) or name
    if not patient or not study_id:
        raise EntryError("impossible id", f"id {name!r:.100}, PatientID {row.get('PatientID')!r:.100}")
    date = id_text(row.get("StudyDate"), "StudyDate")
    return Study(
        study_id=study_id,
        patient_id=patient,
        split=split,
        images=_images(row, patient, root),
        findings=_text(row, "Findings"),
        impression=_text(row, "Impression"),
        indication=_text(row, "Indication"),
        comparison=_text(row, "Comparison"),
        study_date=parse_date(date) if date else None,
        source=SOURCE,
        licence=LICENCE,
    )


def _images(row: Mapping[str, Any], patient: str, root: Path) -> tuple[StudyImage, ...]:
    """The images of a study that are on the disk, frontal ones first; paths begin with `../deid_png/`."""
    paths = [text_of(path) for path in as_list(row.get("ImagePath")) if text_of(path)]
    if not paths:
        folder = Path("deid_png") / patient / text_of(row.get("AccessionNumber"))
        folder = folder / "studies" / text_of(row.get("StudyInstanceUid")) / "series"
        paths = [path.relative_to(root).as_posix() for path in sorted((root / folder).glob("*/instances/*.png"))]
    parts = [PurePosixPath(path).parts for path in paths]
    inside = [PurePosixPath(*(each[each.index("deid_png") :] if "deid_png" in each else each)) for each in parts]
    checked = [parse_path(path.as_posix()) for path in inside]
    views = pair_views(as_list(row.get("ImageViewPosition")), len(checked))
    images = [StudyImage(path, view) for path, view in zip(checked, views, strict=True) if (root / path).is_file()]
    if not images:
        raise EntryError("image not on disk", f"{checked[0] if checked else 'no image is named'}")
    return tuple(sorted(images, key=lambda image: not image.is_frontal))


def _text(row: Mapping[str, Any], column: str) -> str:
    written = text_of(row.get(column))
    return "" if written.lower() in ("nan", "none") else written
