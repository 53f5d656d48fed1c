"""ROCO, radiology objects in context -> studies: the repository's layout after its `fetch.py`, or the Kaggle files.

Pelka et al. 2018 (LABELS workshop), razorx89/roco-dataset @ a1f0ad6. Figures of articles, one a study: the caption is
its `report`, keywords and article (`pmc_id`) are kept as keys of their own. ROCO knows no patients, so each figure
counts as one; figures of one article may stand in two of its splits. Reads no pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_medvlm.data.files import open_text
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, list_folder, parse_path, read_columns
from hf_medvlm.data.study import Study, StudyImage

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {"train": "train", "validation": "validate", "test": "test"}

_KAGGLE_TABLE = re.compile(r"radiology(?:train|val|validation|test)data\.csv")
_CHEST = (
    r"(?:chest|lungs?|pulmonaire|cardiothoracic|thorax|thoraci(?:c|que)\b(?!\s+(?:spin|vertebr|column|duct|aort|kyph)))"
)
_FILM = r"(?:x[- ]?rays?|radiogra\w+|roentgenogra\w+|skiagra\w+|(?:plain\s+)?films?)"
_GAP = r"(?:\W+\w+){0,3}?\W+"
_CHEST_RADIOGRAPH = re.compile(rf"\bCXR\b|\b{_CHEST}{_GAP}{_FILM}\b|\b{_FILM}{_GAP}{_CHEST}\b", re.IGNORECASE)
_OTHER_IMAGING = re.compile(
    r"\b(?:(?:HR|CE|MD|PET)?[- /]?CT|PET|MRI?|tomogra\w*|tomodensitom\w*|magnetic|ultraso\w*|echocardio\w*|angiogra\w*|"
    r"aortogra\w*|scintigra\w*|bronchosco\w*|bronchogra\w*|fluorosco\w*|barium|o?esophagogra\w*|mammogra\w*)\b",
    re.IGNORECASE,
)
_KEYWORDS_CHEST = {"chest", "thorax", "thoracic", "lung", "cxr"}
_KEYWORDS_FILM = {"xray", "radiograph", "radiography", "roentgenogram", "cxr"}


def is_chest_radiograph(caption: str, keywords: tuple[str, ...] = ()) -> bool:
    """Whether the caption, or the keywords together, name a radiograph of the chest and no other kind of picture."""
    text = " ".join((caption, *keywords))
    named = _CHEST_RADIOGRAPH.search(caption) or (
        not _KEYWORDS_CHEST.isdisjoint(keywords) and not _KEYWORDS_FILM.isdisjoint(keywords)
    )
    return bool(named) and not _OTHER_IMAGING.search(text)


def load_roco(root: str | Path, chest_xray: bool = False) -> Corpus:
    """The radiology figures whose image is on disk; the splits are ROCO's, licences are kept for each.

    Args:
        root: holds `data/` or `all_data/` with train, validation and test, or these themselves.
        chest_xray: keep only figures whose caption or keywords name a chest radiograph.

    Raises:
        ValueError: none of the three splits is there, or one without captions; a folder or file that cannot be read.
    """
    root, corpus = Path(root), Corpus()
    bases = [base for base in (root / "data", root / "all_data", root) if any(map(Path.is_dir, _folders(base)))]
    if not bases:
        raise ValueError(f"{root}: no ROCO; wanted are train/radiology, validation/radiology, test/radiology in data/")
    for split, folder in zip(SPLIT_FOLDERS.values(), _folders(bases[0]), strict=True):
        if folder.is_dir():
            _read_split(folder, split, root, chest_xray, corpus)
        else:
            logger.warning("%s is not there: no studies in %s", folder, split)
    return corpus


def _folders(base: Path) -> list[Path]:
    return [base / name / "radiology" for name in SPLIT_FOLDERS]


def _read_split(folder: Path, split: str, root: Path, chest_xray: bool, corpus: Corpus) -> None:
    rejected = corpus.rejected
    on_disk = set(list_folder(folder / "images")) if (folder / "images").is_dir() else set()
    keywords = dict(_if_there(folder / "keywords.txt", lambda path: _keywords(path, rejected)))
    licences = dict(_if_there(folder / "licences.txt", lambda path: _licences(path, rejected)))
    for file, line, name, image, caption in _captions(folder, rejected):
        words = keywords.get(name, ())
        pmc_id, licence = licences.get(name, ("", ""))
        try:
            path = parse_path((folder / "images").relative_to(root).joinpath(image).as_posix())
            if chest_xray and not is_chest_radiograph(caption, words):
                raise EntryError("no chest radiograph", "by caption and keywords")
            if image not in on_disk:
                raise EntryError("image not on disk", path)
            if name in corpus.places:
                raise EntryError("duplicate row", f"also {corpus.places[name][0]}:{corpus.places[name][1]}")
        except EntryError as error:
            rejected.append(Rejected(file, line, name, error.reason, error.detail))
            continue
        extra = ({"keywords": list(words)} if words else {}) | ({"pmc_id": pmc_id} if pmc_id else {})
        images = (StudyImage(path),)
        study = Study(name, name, split, images, report=caption, source="ROCO", licence=licence, extra=extra)
        corpus.add(study, file, line)


def _if_there(path: Path, read: Callable[[Path], Iterator]) -> Iterator:
    if path.exists():
        return read(path)
    logger.warning("%s is not there", path)
    return iter(())


def _captions(folder: Path, rejected: list[Rejected]) -> Iterator[tuple[str, int, str, str, str]]:
    """(file, line, ROCO id, file name of the image, caption), from captions.txt or else from Kaggle's table."""
    listed = folder / "captions.txt"
    tables = [
        place / name
        for place in (folder.parent, folder)
        for name in list_folder(place)
        if _KAGGLE_TABLE.fullmatch(name)
    ]
    if listed.exists():
        for line, (name, caption) in _tab_separated(listed, rejected):
            yield str(listed), line, name, f"{name}.jpg", caption
    elif tables:
        for line, (name, image, caption) in read_columns(tables[0], ("id", "name", "caption"), rejected):
            yield str(tables[0]), line, name, image, " ".join(caption.split())
    else:
        raise ValueError(f"{folder}: neither captions.txt nor Kaggle's radiology...data.csv is there")


def _keywords(path: Path, rejected: list[Rejected]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for _, (name, words) in _tab_separated(path, rejected):
        yield name, tuple(word.strip() for word in words.split("\t") if word.strip())


def _licences(path: Path, rejected: list[Rejected]) -> Iterator[tuple[str, tuple[str, str]]]:
    for _, (name, pmc_id, licence) in read_columns(path, ("ROCO_ID", "PMC_ID", "CC"), rejected):
        yield name, (pmc_id, licence)


def _tab_separated(path: Path, rejected: list[Rejected]) -> Iterator[tuple[int, tuple[str, str]]]:
    """(line, (id, what follows the first tab)) of a file of ROCO's."""
    with open_text(path) as handle:
        for line, text in enumerate(handle, start=1):
            name, tab, rest = text.rstrip("\r\n").partition("\t")
            if tab and re.fullmatch(r"ROCO_\d+", name):
                yield line, (name, rest.strip())
            elif text.strip():
                rejected.append(Rejected(str(path), line, None, "wrong layout", "wanted: ROCO_<number>, a tab, text"))
