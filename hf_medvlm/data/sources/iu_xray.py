"""Indiana University chest X-rays -> studies: Open-i's XML and PNG, Kaggle's CSVs, or R2Gen's `annotation.json`.

Demner-Fushman et al. 2016 (JAMIA 23:304); CC BY-NC-ND 4.0 by each XML's own words. There is no patient id: one study a
patient is assumed, as all who use the corpus do. Reads no pixels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hf_medvlm.data.files import check_regular, load_json
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, list_folder, parse_path, read_columns, read_csv
from hf_medvlm.data.study import Study, StudyImage

SOURCE, LICENCE = "IU X-ray (Open-i)", "CC BY-NC-ND 4.0"
VIEWS = {"frontal": None, "lateral": "LATERAL"}
"""Kaggle's projections; "frontal" says neither PA nor AP, and a view that is not known counts as frontal."""

SECTIONS = ("findings", "impression", "indication")
R2GEN_SPLITS = {"train": "train", "val": "validate", "test": "test"}
R2GEN_ENTRY = {"id": str, "report": str, "image_path": list}
_LICENCE = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)")
_UID = re.compile(r"CXR\d+")


def load_iu_xray(root: str | Path) -> Corpus:
    """The studies of whichever layout is in `root`; image paths are relative to it.

    - R2Gen: `annotation.json` and `images`; its reports are the findings sections, its split is kept.
    - Kaggle: `indiana_reports.csv`, `indiana_projections.csv`, `images/images_normalized`.
    - Open-i: `ecgen-radiology/*.xml` in `root` or in `NLMCXR_reports`, the folder `NLMCXR_png` or `images`. The XML
      knows no views; Kaggle's `indiana_projections.csv`, put beside, adds them.

    `mesh` (the annotators' terms) is kept as a key of its own.

    Raises:
        ValueError: none of these is there; a table or a JSON that is not what its name says, with its line.
    """
    root = Path(root)
    if (root / "annotation.json").exists():
        return _read_r2gen(root)
    if (root / "indiana_reports.csv").exists():
        return _read_kaggle(root)
    return _read_open_i(root)


def _study(uid: str, images: Iterable[StudyImage], texts: Mapping[str, str], mesh: Iterable[str], **more: Any) -> Study:
    """The frontal images first; white space in the texts, which XML indents, collapsed."""
    text = {name: " ".join(texts.get(name, "").split()) for name in (*SECTIONS, "comparison")}
    terms = [term.strip() for term in mesh if term.strip()]
    extra = {"mesh": terms} if terms else {}
    ordered = tuple(sorted(images, key=lambda image: not image.is_frontal))
    return Study(uid, uid, images=ordered, source=SOURCE, extra=extra, **{"licence": LICENCE, **text, **more})


def _read_open_i(root: Path) -> Corpus:
    places = [root / place for place in ("NLMCXR_reports/ecgen-radiology", "ecgen-radiology", "NLMCXR_reports", ".")]
    files = next(filter(None, map(_xml_files, places)), None)
    if files is None:
        raise ValueError(
            f"{root}: no IU X-ray corpus; wanted are ecgen-radiology/*.xml, indiana_reports.csv or annotation.json"
        )
    corpus = Corpus()
    pictures = next((name for name in ("NLMCXR_png", "images") if (root / name).is_dir()), "NLMCXR_png")
    projections, views = root / "indiana_projections.csv", {}
    if projections.exists():
        views = {f"CXR{name.split('.')[0]}": view for _, name, view in _views(projections, corpus)}
    for path in files:
        try:
            study = _read_xml(path, pictures, views)
            if study.study_id in corpus.places:
                raise EntryError("duplicate row", f"study id of {corpus.places[study.study_id][0]}")
            corpus.add(study, str(path), None)
        except ElementTree.ParseError as error:
            corpus.rejected.append(Rejected(str(path), error.position[0], None, "not XML", str(error)))
        except OSError as error:
            corpus.rejected.append(Rejected(str(path), None, None, "cannot be read", error.strerror or str(error)))
        except EntryError as error:
            corpus.rejected.append(Rejected(str(path), None, None, error.reason, error.detail))
    return corpus


def _xml_files(folder: Path) -> list[Path]:
    """The XML files of a folder, 2.xml before 10.xml; none where there is no such folder."""
    names = [name for name in list_folder(folder) if name.endswith(".xml")] if folder.is_dir() else []
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name))]


def _read_xml(path: Path, pictures: str, views: Mapping[str, str | None]) -> Study:
    try:
        check_regular(path)
        tree = ElementTree.parse(path).getroot()
    except (ValueError, LookupError) as error:  # a pipe or a device; an encoding that is none
        raise EntryError("cannot be read", str(error).removeprefix(f"{path}: ")) from error
    uid = tree.find("uId")
    name = None if uid is None else uid.get("id")
    if not name:
        raise EntryError("wrong layout", f"<{tree.tag}> has no <uId id=...>; Open-i's files have")
    texts = {text.get("Label", "").lower(): text.text or "" for text in tree.iter("AbstractText")}
    names = [image.get("id", "") for image in tree.iter("parentImage")]
    images = [StudyImage(parse_path(f"{pictures}/{name}.png"), views.get(name)) for name in names]
    stated = _LICENCE.search(tree.findtext("licenseURL") or "")
    licence = f"CC {stated[1].upper()} {stated[2]}" if stated else LICENCE
    mesh = (term.text or "" for term in tree.iterfind("MeSH/major"))
    return _study(name, images, texts, mesh, licence=licence)


def _views(path: Path, corpus: Corpus) -> Iterator[tuple[str, str, str | None]]:
    """(uid, file name, view) of Kaggle's projections."""
    for line, (uid, name, view) in read_columns(path, ("uid", "filename", "projection"), corpus.rejected):
        try:
            if view.lower() not in VIEWS:
                raise EntryError("unknown view", f"projection {view!r:.100} is none of {', '.join(VIEWS)}")
            yield uid, parse_path(name), VIEWS[view.lower()]
        except EntryError as error:
            corpus.rejected.append(Rejected(str(path), line, uid, error.reason, error.detail))


def _read_kaggle(root: Path) -> Corpus:
    corpus = Corpus()
    folder = next(
        (name for name in ("images/images_normalized", "images_normalized") if (root / name).is_dir()), "images"
    )
    images: dict[str, list[StudyImage]] = defaultdict(list)
    for uid, name, view in _views(root / "indiana_projections.csv", corpus):
        images[uid].append(StudyImage(f"{folder}/{name}", view))
    reports = root / "indiana_reports.csv"
    for line, row in read_csv(reports, ("uid", "MeSH", "indication", "findings", "impression"), corpus.rejected):
        uid = f"CXR{row['uid']}"
        if uid in corpus.places:
            corpus.rejected.append(Rejected(str(reports), line, uid, "duplicate row", f"uid {row['uid']}"))
        else:
            corpus.add(_study(uid, images.pop(row["uid"], ()), row, row["MeSH"].split(";")), str(reports), line)
    for uid, left in images.items():
        file = str(root / "indiana_projections.csv")
        corpus.rejected.append(Rejected(file, None, f"CXR{uid}", "image without a report", left[0].path))
    return corpus


def _read_r2gen(root: Path) -> Corpus:
    path, corpus = root / "annotation.json", Corpus()
    parts = load_json(path)
    if not isinstance(parts, dict) or not all(isinstance(part, list) for part in parts.values()):
        raise ValueError(
            f"{path}: not R2Gen's annotation.json; wanted is {{'train': [...], 'val': [...], 'test': [...]}}"
        )
    for part, entries in parts.items():
        for number, entry in enumerate(entries):
            name = None
            try:
                if not isinstance(entry, dict) or not all(isinstance(entry.get(k), t) for k, t in R2GEN_ENTRY.items()):
                    raise EntryError(
                        "wrong layout", f"entry {number} of {part!r:.100}; wanted: {', '.join(R2GEN_ENTRY)}"
                    )
                name, split = entry["id"], entry.get("split", part)
                if not isinstance(split, str) or split not in R2GEN_SPLITS:
                    raise EntryError("unknown split", f"entry {number} of {part!r:.100}: {split!r:.100}")
                if name in corpus.places:
                    raise EntryError("duplicate row", f"entry {number} of {part!r:.100}")
                images = [StudyImage(parse_path(f"images/{image}")) for image in entry["image_path"]]
                uid = _UID.match(name)
                study = _study(name, images, {"findings": entry["report"]}, ())
                study = replace(study, patient_id=uid[0] if uid else name, split=R2GEN_SPLITS[split])
                corpus.add(study, str(path), None)
            except EntryError as error:
                corpus.rejected.append(Rejected(str(path), None, name, error.reason, error.detail))
    return corpus
