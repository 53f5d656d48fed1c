"""PadChest-GR -> studies with boxes: `grounded_reports_20240819.json`, `master_table.csv` and the PNGs.

Castro et al. 2024 (arXiv 2411.05085), BIMCV and Microsoft. A report is a list of sentences, in English and in Spanish,
each with its labels and, where it can be seen, its boxes. Boxes are stored as shares of the image; its size is read
from the file's header, and no pixels are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_medvlm.checked import flag, many, number, record, text, words
from hf_medvlm.data.fields import SPLIT_NAMES, id_text
from hf_medvlm.data.files import open_text, read_json
from hf_medvlm.data.sources.base import Corpus, EntryError, Rejected, files_by_stem, find_table, list_folder, read_csv
from hf_medvlm.data.sources.cells import text_of
from hf_medvlm.data.sources.padchest import CHEXPERT, NO_FINDING
from hf_medvlm.data.study import Study, StudyBox, StudyImage

SOURCE = "PadChest-GR"
LICENCE = "PadChest-GR Research Use Agreement"
LANGUAGES = ("en", "es")
FOLDERS = ("PadChest_GR", "Padchest_GR_files/PadChest_GR", "Padchest_GR_files", "images_grounding", "images", ".")
_SENTENCE = record(sentence_en=words, sentence_es=words, abnormal=flag, labels=many(words), boxes=many(many(number)))
ENTRY = record("StudyID ImageID", StudyID=text, ImageID=text, findings=many(_SENTENCE))
"""What a study of the grounded reports holds."""


def load_padchest_gr(root: str | Path, language: str = "en") -> Corpus:
    """The studies of PadChest-GR, one frontal image each, with the official split by patient.

    A sentence without boxes stays in the report. Labels are those of the sentences, by PadChest's names or CheXpert's
    where they mean the same; the additional boxes (`extra_boxes`) are left aside.

    Args:
        language: of the report: en or es.

    Raises:
        ValueError: a file that is not there or broken; a language that the corpus does not have.
    """
    if language not in LANGUAGES:
        raise ValueError(f"--language {language}: there are {', '.join(LANGUAGES)}")
    root, corpus = Path(root), Corpus()
    names = [name for name in list_folder(root) if name.startswith("grounded_reports") and name.endswith(".json")]
    table = find_table(root, (".",), "master_table.csv")
    if not names or table is None:
        raise ValueError(f"{root}: no PadChest-GR; wanted are grounded_reports_20240819.json and master_table.csv")
    known: dict[str, Mapping[str, str]] = {}
    for _, row in read_csv(table, ("StudyID", "PatientID", "split"), corpus.rejected):
        known.setdefault(id_text(row["StudyID"], "StudyID"), row)
    places = files_by_stem(root, FOLDERS)
    path = root / names[0]
    with open_text(path) as handle:
        entries = read_json(handle.read(), path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a list of studies is wanted, found a {type(entries).__name__}")
    for entry in entries:
        study_id = ""
        try:
            entry = ENTRY(entry, "the study:")
            study_id = id_text(entry["StudyID"], "StudyID")
            if study_id not in known:
                raise EntryError("no patient", f"study {study_id or '?'} is not in {table.name}")
            corpus.add(_study(entry, known[study_id], root, places, language), str(path), None)
        except (EntryError, ValueError) as error:
            reason = getattr(error, "reason", "wrong layout")
            detail = getattr(error, "detail", str(error))
            corpus.rejected.append(Rejected(str(path), None, study_id or None, reason, detail))
    return corpus


def _study(
    entry: Mapping[str, Any], row: Mapping[str, str], root: Path, places: Mapping[str, str], language: str
) -> Study:
    name = text_of(entry.get("ImageID"))
    stem = Path(name).stem
    if stem not in places:
        raise EntryError("image not on disk", f"PadChest_GR/{name}")
    sentences = entry.get("findings") or []
    texts = [text_of(part.get(f"sentence_{language}")) for part in sentences]
    labels: dict[str, int | None] = dict.fromkeys(CHEXPERT.values(), 0)
    boxes: list[StudyBox] = []
    width, height = _size(root / places[stem]) if any(part.get("boxes") for part in sentences) else (1, 1)
    for part, phrase in zip(sentences, texts, strict=True):
        terms = [term for label in part.get("labels") or () if (term := text_of(label).lower()) not in NO_FINDING]
        if part.get("abnormal") or "normal" in terms:
            labels |= {CHEXPERT.get(term, term): 1 for term in terms}
        finding = next((CHEXPERT.get(term, term) for term in terms), None)
        for corners in part.get("boxes") or ():
            boxes.append(StudyBox(0, phrase, _pixels(corners, width, height), finding))
    if not any(part.get("abnormal") for part in sentences):
        labels["No Finding"] = 1
    split = text_of(row["split"]).lower()
    return Study(
        study_id=id_text(entry["StudyID"], "StudyID"),
        patient_id=id_text(row["PatientID"], "PatientID"),
        split=SPLIT_NAMES.get(split),
        images=(StudyImage(places[stem]),),
        findings=" ".join(filter(None, texts)),
        labels=labels,
        boxes=tuple(boxes),
        source=SOURCE,
        licence=LICENCE,
        extra={"language": language},
    )


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise EntryError("unreadable image", f"{path}: {error}") from error


def _pixels(corners: Iterable[Any], width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels of left, top, right, bottom as shares of the image."""
    try:
        left, top, right, bottom = (float(value) for value in corners)
    except (TypeError, ValueError) as error:
        raise EntryError("impossible box", f"{corners!r:.100}: four numbers are wanted") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise EntryError("impossible box", f"{[left, top, right, bottom]}: left, top, right, bottom between 0 and 1")
    return left * width, top * height, (right - left) * width, (bottom - top) * height
