"""What a study must be before it is trained on: checks that count what they leave out, and the leak check.

Works on a `Corpus`, whatever its source. Reads pixels only where asked to (`drop_broken_images`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hf_medvlm.data.images import ONE_GREY
from hf_medvlm.data.sources.base import Corpus
from hf_medvlm.data.study import Study
from hf_medvlm.data.verification import check_images

LABEL_POLICIES: Mapping[str, Mapping[int | None, int | None]] = {
    "keep": {1: 1, 0: 0, -1: -1, None: None},
    "positive-only": {1: 1, 0: 0, -1: 0, None: 0},
    "u-ones": {1: 1, 0: 0, -1: 1, None: None},
    "u-zeros": {1: 1, 0: 0, -1: 0, None: None},
    "ignore": {1: 1, 0: 0, -1: None, None: None},
}
"""What becomes of present, absent, uncertain and not mentioned (Irvin et al. 2019, section 3.1, for the `u-` names).

`positive-only`: a finding is there or it is not; all but a plain yes is a no. Under the others what is not mentioned
stays unknown; under `ignore` what is uncertain is unknown too.
"""


def check_studies(corpus: Corpus, min_characters: int = 30) -> None:
    """Take off studies without an image, without a text or with one shorter than `min_characters`, and repeated ones.

    A study is repeated if its first image and its text have been there before, or its id has.
    """
    kept: list[Study] = []
    ids: set[str] = set()
    texts_of: dict[str, list[str]] = {}
    for study in corpus.studies:
        text = study.text()
        path = study.images[0].path if study.images else ""
        if not path:
            corpus.reject(study, "no image")
        elif not text:
            corpus.reject(study, "empty text")
        elif len(text) < min_characters:
            corpus.reject(study, "short text", f"{len(text)} characters, {min_characters} are wanted")
        elif study.study_id in ids or text in texts_of.get(path, ()):
            corpus.reject(study, "duplicate row", path)
        else:
            ids.add(study.study_id)
            texts_of.setdefault(path, []).append(text)
            kept.append(study)
    corpus.studies = kept


def drop_broken_images(corpus: Corpus, image_folder: str | Path, workers: int | None = None) -> None:
    """Decode every image, in parallel; take off those that cannot be read, and studies left without a frontal one."""
    folder = Path(image_folder)
    paths = (image.path for study in corpus.studies for image in study.images)
    drop_images(corpus, check_images(folder, paths, workers), folder)


def drop_images(corpus: Corpus, broken: Mapping[str, str], image_folder: str | Path) -> None:
    """Take off the images in `broken` (path -> why), counted as missing, unreadable or empty, and what needs them."""
    if not broken:
        return
    kept = []
    for study in corpus.studies:
        bad = [number for number, image in enumerate(study.images) if image.path in broken]
        for number in bad:
            path = study.images[number].path
            reason = "unreadable image" if (Path(image_folder) / path).exists() else "image not on disk"
            if broken[path].startswith(ONE_GREY):
                reason = "image of one grey value"
            corpus.reject(study, reason, f"{path}: {broken[path]}")
        left = without_images(study, bad) if bad else study
        if bad and not any(image.is_frontal for image in left.images):
            corpus.reject(study, "no frontal image", "none is left that can be read")
        else:
            kept.append(left)
    corpus.studies = kept


def without_images(study: Study, numbers: Iterable[int]) -> Study:
    """The study without these images and their boxes; the other boxes move with their images."""
    gone = set(numbers)
    place = {number: new for new, number in enumerate(n for n in range(len(study.images)) if n not in gone)}
    boxes = tuple(replace(box, image=place[box.image]) for box in study.boxes if box.image in place)
    return replace(study, images=tuple(study.images[number] for number in place), boxes=boxes)


def find_leakage(studies: Iterable[Study]) -> dict[str, list[str]]:
    """Patient -> splits, for each patient who is in more than one."""
    first: dict[str, str] = {}
    leaks: dict[str, set[str]] = {}
    for study in studies:
        if study.split and first.setdefault(study.patient_id, study.split) != study.split:
            leaks.setdefault(study.patient_id, {first[study.patient_id]}).add(study.split)
    return {patient: sorted(splits) for patient, splits in leaks.items()}


def refuse_leakage(leaks: Mapping[str, Sequence[str]]) -> None:
    """Raise `ValueError` that names the patients, if there are any."""
    if leaks:
        named = "; ".join(f"{patient} in {' and '.join(splits)}" for patient, splits in list(leaks.items())[:10])
        more = f"; and {len(leaks) - 10} more" if len(leaks) > 10 else ""
        raise ValueError(
            f"{len(leaks)} patient(s) in two splits: {named}{more}. Mend the split, or leave it out: patients are then "
            "split by a hash."
        )


def apply_label_policy(studies: Sequence[Study], policy: str) -> list[Study]:
    """The studies with the states of their labels replaced as `LABEL_POLICIES` says; no labels stay no labels."""
    if policy not in LABEL_POLICIES:
        raise ValueError(f"label policy {policy!r:.100} is none of {', '.join(LABEL_POLICIES)}")
    if policy == "keep":
        return list(studies)
    become = LABEL_POLICIES[policy]
    return [replace(study, labels={name: become[state] for name, state in study.labels.items()}) for study in studies]
