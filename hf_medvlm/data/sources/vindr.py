"""VinDr-CXR -> studies: PhysioNet's layout, or Kaggle's images with its tables. Labels and boxes, no reports.

Nguyen et al. 2022 (Scientific Data 9, 429; PhysioNet `vindr-cxr` 1.0.0). Three radiologists read each training image,
each by themselves; the test labels are a consensus of five. A finding that at least half of its readers name is
present, one that fewer name uncertain, and one that nobody names absent. A sentence made of these labels stands in as
`report`, and says so. There are no patients in the corpus: each image counts as one. Reads no pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data.boxes import VINDR_TO_CHEXPERT, read_vindr
from hf_medvlm.data.sources.base import Corpus, Rejected, files_by_stem, find_table, read_csv
from hf_medvlm.data.study import Study, StudyBox, StudyImage

SOURCE = "VinDr-CXR"
LICENCE = "PhysioNet Credentialed Health Data Use Agreement 1.5.0"
NOTHING = ("no finding", "no findings")
SPLITS = {"train": None, "test": "test"}  # validation is drawn from the training images


def load_vindr(root: str | Path) -> Corpus:
    """Each image a study, with its labels and its radiologists' boxes; the official test images are the test split.

    - `annotations/image_labels_train.csv` and `image_labels_test.csv` (or beside the images): image_id, rad_id and a
      column of 0 and 1 for each of the 28 labels; `annotations_train.csv` and `annotations_test.csv`: the boxes.
    - `train/` and `test/` with `<image_id>.dicom`, or with copies of any format that is read.

    Boxes are in pixels of the original images.

    Raises:
        ValueError: neither table of labels is there; a table without its columns, a state or a box that is none.
    """
    root = Path(root)
    corpus = Corpus(given_splits=frozenset({"test"}))
    tables = {part: find_table(root, ("annotations", "."), f"image_labels_{part}.csv") for part in SPLITS}
    if not any(tables.values()):
        raise ValueError(f"{root}: no VinDr-CXR; wanted is annotations/image_labels_train.csv or image_labels_test.csv")
    for part, table in tables.items():
        if table is None:
            continue
        boxes_file = find_table(root, ("annotations", "."), f"annotations_{part}.csv")
        boxes = read_vindr(boxes_file) if boxes_file else {}
        places = files_by_stem(root, (part, f"{part}_png", "."))
        for image, (line, votes) in _votes(table, corpus).items():
            if image not in places:
                reason = "image not on disk"
                corpus.rejected.append(Rejected(str(table), line, image, reason, f"{part}/{image}.dicom"))
                continue
            study = _study(image, places[image], votes)
            study_boxes = tuple(StudyBox(0, box.phrase, box.xywh, box.finding) for box in boxes.get(image, ()))
            corpus.add(replace(study, split=SPLITS[part], boxes=study_boxes), str(table), line)
    return corpus


def _votes(table: Path, corpus: Corpus) -> dict[str, tuple[int, dict[str, list[int]]]]:
    """Image -> its first line, and for each label what each of its readers said."""
    votes: dict[str, tuple[int, dict[str, list[int]]]] = {}
    for line, row in read_csv(table, ("image_id",), corpus.rejected):
        image = row["image_id"].strip()
        cells = {name: cell.strip() for name, cell in row.items() if name not in ("image_id", "rad_id")}
        wrong = next((name for name, cell in cells.items() if cell not in ("0", "1", "0.0", "1.0")), None)
        if wrong or not image:
            detail = f"{wrong} is {cells[wrong]!r}; it is 0 or 1" if wrong else "no image_id"
            corpus.rejected.append(Rejected(str(table), line, image or None, "impossible label", detail))
            continue
        marks = votes.setdefault(image, (line, defaultdict(list)))[1]
        for name, cell in cells.items():
            marks[name].append(int(float(cell)))
    return votes


def _study(image: str, path: str, votes: Mapping[str, list[int]]) -> Study:
    states: dict[str, int | None] = {}
    for name, marks in votes.items():
        state = 1 if 2 * sum(marks) >= len(marks) else -1 if any(marks) else 0
        finding = "No Finding" if name.lower() in NOTHING else VINDR_TO_CHEXPERT.get(name, name)
        rank = (0, -1, 1)  # of two labels that are one of CheXpert's, the surer
        states[finding] = max(state, states.get(finding) or 0, key=rank.index)
    named = [name for name, marks in votes.items() if 2 * sum(marks) >= len(marks) and name.lower() not in NOTHING]
    shown = ", ".join(name.lower() for name in named) or "no finding"
    return Study(
        study_id=image,
        patient_id=image,
        images=(StudyImage(path),),
        report=f"Labels of radiologists, not a report: {shown}.",
        labels=states,
        source=SOURCE,
        licence=LICENCE,
    )
