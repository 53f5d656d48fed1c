"""Synthetic studies: made-up patients with chest radiographs and reports that a small model can learn from.

They are the embedded default of every recipe and what every family is tested on. They are no data about anybody, carry
no licence terms (CC0), and prove that code learns, not that a model is any good on patients.

    patients    1 to 4 studies each, in time; a build of their own; split by patient, 70 / 10 / 20 %
    pictures    PA or AP, a quarter of the PA ones with a lateral; right side of the patient at the left; 8 bits
    findings    eleven of CheXpert's, drawn where and as strongly as the report says; about a quarter of the studies is
                normal; a doubtful finding is drawn faintly, and reported as possible
    reports     findings and impression in one of three voices, in the fixed order of radiologists, with negations and
                comparison with the prior study; normal reports repeat word for word
    labels      CheXpert's 14 states as the text says them; Pneumonia is only ever suspected (-1)
    boxes       around each place where a finding is drawn, with its CheXpert name and its words in the report
    progression of a study with a prior: finding -> improving, stable or worsening; "new" counts
                as worsening, "resolved" as improving

From a seed the pixels, texts and boxes are the same on every machine (`phantom_shapes` says how), and the first studies
of a large set are those of a small one. `GENERATOR` grows with every change to them.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from hf_medvlm.data.files import write_json
from hf_medvlm.data.locks import is_abandoned, taken
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study, StudyBox, StudyImage, read_jsonl, write_jsonl
from hf_medvlm.data.synthetic.patients import Patient, patient
from hf_medvlm.data.synthetic.phantoms import frontal, lateral
from hf_medvlm.data.synthetic.random import rng_for
from hf_medvlm.data.synthetic.reports import write

GENERATOR = 4
"""Version of the pictures and texts; folders written by another one are not reused."""

FIRST_DAY = datetime.date(2010, 1, 1)
STUDIES, SETTINGS = "studies.jsonl", "settings.json"


def make_studies(folder: str | Path, count: int = 2000, seed: int = 0, size: int = 224) -> list[Study]:
    """Write `count` studies to `folder` once, pictures and `studies.jsonl`, and read them from there ever after.

    The folder appears whole or not at all, also when several processes ask for it at once. What an older version of
    the generator wrote is replaced. All cores draw.

    Args:
        size: side of the square pictures, in pixels.

    Raises:
        ValueError: a count or size below 1, or a folder that holds something else.
        OSError: the disk is full or may not be written to; the message names the folder and the way out.
    """
    folder, settings = Path(folder), {"generator": GENERATOR, "count": count, "seed": seed, "size": size}
    if count < 1 or size < 1:
        raise ValueError(f"count and size must be 1 or more, got {count} and {size}")
    if not _holds(folder, settings):
        try:
            _make(folder, settings)
        except OSError as error:
            raise OSError(
                f"could not write made-up studies to {folder}: {error.strerror or error}; name another folder with "
                "the environment variable HF_MEDVLM_CACHE"
            ) from error
    return read_jsonl(folder / STUDIES)


def _holds(folder: Path, settings: dict[str, int]) -> bool:
    """True if the folder holds these studies, False if there is nothing yet or an older version of them."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        written = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = {}
    if not isinstance(written, dict) or written | {"generator": GENERATOR} != settings:
        raise ValueError(
            f"{folder} holds {written or 'something else'}, not synthetic studies with {settings}; "
            "name another folder or delete it"
        )
    return written == settings


def _make(folder: Path, settings: dict[str, int]) -> None:
    """Write the studies beside `folder` and rename; what killed makers left there goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)  # another maker may have begun to
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside, taken(beside):
        _write(Path(beside) / "new", settings)
        try:
            if folder.exists() and not _holds(folder, settings):
                folder.rename(Path(beside) / "old")
            (Path(beside) / "new").rename(folder)
        except OSError:
            if not _holds(folder, settings):  # else another process was quicker, with the same studies
                raise


def _write(folder: Path, settings: dict[str, int]) -> None:
    from tqdm import tqdm

    count, seed = settings["count"], settings["seed"]
    (folder / "images").mkdir(parents=True)
    visits: list[int] = []  # of each patient; the last one may lose some
    while (missing := count - sum(visits)) > 0:
        visits.append(min(missing, len(patient(seed, len(visits)).visits)))
    draw = partial(_draw_patient, folder, seed, settings["size"])
    with (
        tqdm(total=count, desc="Drawing synthetic studies", unit="study", disable=None) as bar,
        _mapper(count) as mapped,
    ):
        studies = []
        for drawn in mapped(draw, range(len(visits)), visits):
            studies += drawn
            bar.update(len(drawn))
    write_jsonl(assign_splits(studies, seed, validate=0.1, test=0.2), folder / STUDIES)
    write_json(folder / SETTINGS, settings)


@contextmanager
def _mapper(count: int) -> Iterator[Callable]:
    """`map` over all cores, or in this process where there is too little to do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (workers := min(cores, count // 100)) < 2:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield partial(pool.map, chunksize=8)


def _draw_patient(folder: Path, seed: int, size: int, number: int, visits: int) -> list[Study]:
    """Write the pictures of a patient's first visits and return the studies."""
    person = patient(seed, number)
    studies = []
    for visit in range(visits):
        study, pictures = _examine(person, visit, seed, size)
        for image, picture in zip(study.images, pictures, strict=True):
            picture.save(folder / image.path, compress_level=1)
        studies.append(study)
    return studies


def _examine(person: Patient, number: int, seed: int, size: int) -> tuple[Study, list[Image.Image]]:
    visit = person.visits[number]
    prior = None if visit.prior is None else {sign.finding: sign for sign in visit.prior}
    text = write(visit.signs, prior, rng_for(seed, "report", person.patient_id, number))
    pixels, boxes = frontal(person.anatomy, visit.frontal, visit.signs, size)
    study_id = f"{person.patient_id}-{number}"
    images, pictures = [StudyImage(f"images/{study_id}_frontal.png", visit.frontal.view)], [Image.fromarray(pixels)]
    if visit.lateral is not None:
        images.append(StudyImage(f"images/{study_id}_lateral.png", "LATERAL"))
        pictures.append(Image.fromarray(lateral(person.anatomy, visit.lateral, visit.signs, size)))
    study = Study(
        study_id=study_id,
        patient_id=person.patient_id,
        images=tuple(images),
        findings=text.findings,
        impression=text.impression,
        report=text.report(has_prior=prior is not None),
        indication=text.indication,
        labels=text.labels,
        prior_study_id=None if prior is None else f"{person.patient_id}-{number - 1}",
        study_date=(FIRST_DAY + datetime.timedelta(days=visit.day)).isoformat(),
        boxes=tuple(StudyBox(0, text.phrases[sign.finding], box, sign.finding) for sign, box in boxes),
        source="synthetic",
        licence="CC0-1.0",
        progression=text.progression if prior is not None else {},
    )
    return study, pictures
