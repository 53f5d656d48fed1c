"""Studies -> batches for `BioViLTModel`: an image and, where there is one, the image before it; text and labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_medvlm.collators.augmentation import PRESENT, TABLE
from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.collators.pixels import read_pixels
from hf_medvlm.data.counting import tables_of
from hf_medvlm.data.priors import priors_of
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.labels import IGNORE_INDEX, PROGRESSIONS

logger = logging.getLogger(__name__)

"""MS-CXR-T's classes (Bannur et al. 2023, PhysioNet `ms-cxr-t`), in the order of the model's logits."""


def find_priors(*groups: Iterable[Study]) -> Mapping[str, Study]:
    """study_id -> the prior study that `prior_study_id` names, where it is in one of the groups and has an image.

    Priors that are not there are counted in a warning; their studies are taken as studies without a prior.

    Raises:
        ValueError: a prior of another patient, or one that is newer than the study; the message names both.
    """
    priors: Mapping[str, Study]
    if tables := tables_of([group for group in groups if isinstance(group, Sequence)]):
        priors, absent = priors_of(tables, check_prior)
    else:
        priors, absent = _priors_by_id({study.study_id: study for group in groups for study in group})
    if absent:
        logger.warning("%d studies name a prior that is not in the data set; they count as having none", absent)
    return priors


def _priors_by_id(by_id: Mapping[str, Study]) -> tuple[dict[str, Study], int]:
    priors, absent = {}, 0
    for study in by_id.values():
        if study.prior_study_id is None:
            continue
        prior = by_id.get(study.prior_study_id)
        if prior is None or prior.frontal is None:
            absent += 1
            continue
        check_prior(study, prior)
        priors[study.study_id] = prior
    return priors, absent


def check_prior(study: Study, prior: Study) -> None:
    """Raise `ValueError` unless `prior` is of the same patient, and no newer, as far as the dates tell."""
    if prior.patient_id != study.patient_id:
        raise ValueError(
            f"study {study.study_id!r:.100} of patient {study.patient_id!r:.100} names {prior.study_id!r:.100} "
            f"as its prior, which is "
            f"of patient {prior.patient_id!r:.100}; correct prior_study_id"
        )
    if study.study_date and prior.study_date:
        known = min(len(study.study_date), len(prior.study_date))  # ISO 8601 sorts as text; a date may lack its time
        if prior.study_date[:known] > study.study_date[:known] or prior.study_id == study.study_id:
            raise ValueError(
                f"study {study.study_id!r:.100} of {study.study_date} names {prior.study_id!r:.100} of "
                f"{prior.study_date} as its "
                "prior, which is no earlier; correct prior_study_id or study_date"
            )


def progression_labels(study: Study, findings: Iterable[str]) -> list[int]:
    """Class of each finding out of `study.progression`, or `IGNORE_INDEX`."""
    states = [study.progression.get(finding) for finding in findings]
    return [IGNORE_INDEX if state is None else PROGRESSIONS.index(state) for state in states]


@dataclass
class PriorCollator(PairCollator):
    """`PairCollator` with the previous image and labels.

    Args:
        priors: study_id -> its prior, of `find_priors`; without any, no study has a previous image.
        progression_findings, findings: names in the order of the model's logits; without names no labels are made.

    The current and the previous image of a study are augmented alike, so that what moved between them is the patient.

    Example: two studies of which the first has a prior, one progression finding and no findings, give
        `pixel_values` and `previous_pixel_values` (2, 3, H, W), the second row of the latter 0, `has_previous`
        [True, False], `input_ids` and `attention_mask` (2, T), `pair_ids` (2,), `progression` [[2], [-100]].
    """

    priors: Mapping[str, Study] = field(default_factory=dict)
    progression_findings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def __call__(self, items: Sequence[Row | Study]) -> dict[str, Tensor]:
        rows = as_rows(items)
        batch = super().__call__(rows)
        if self.progression_findings:
            labels = [progression_labels(row.study, self.progression_findings) for row in rows]
            # without the previous image nothing can be said of a change
            batch["progression"] = torch.tensor(labels).masked_fill(~batch["has_previous"][:, None], IGNORE_INDEX)
        if self.findings:
            states = [[row.study.labels.get(name) for name in self.findings] for row in rows]
            known = [[state if state in (0, 1) else IGNORE_INDEX for state in row] for row in states]
            batch["findings"] = torch.tensor(known)
        return batch

    def images(self, rows: list[Row]) -> dict[str, Tensor]:
        """`pixel_values`, `previous_pixel_values` and `has_previous`."""
        batch = super().images(rows)
        has_previous = torch.tensor([row.study.study_id in self.priors for row in rows])
        # the variation and the look-up table of unfinished pixels are the current image's
        previous = {f"previous_{name}": value for name, value in batch.items()}
        previous["previous_pixel_values"] = torch.zeros_like(batch["pixel_values"])
        later = [row for row in rows if row.study.study_id in self.priors]
        if later:
            images = [(row, self.priors[row.study.study_id].frontal) for row in later]
            processor = self.processor.image_processor
            read = read_pixels(images, self.image_folder, processor, self.training, self.seed)
            previous["previous_pixel_values"][has_previous] = read["pixel_values"]
        if f"pixel_values{TABLE}" in batch:
            previous[f"previous_pixel_values{PRESENT}"] = has_previous
        return batch | previous | {"has_previous": has_previous}
