"""Evaluation of MedKLIP: how well it tells each entity's presence, and whether it looks at the right place.

Headlines: `mean_auc`, `pointing_game`. Thresholds are chosen on validation studies and kept for the test studies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Evaluation, Scores, run_over
from hf_medvlm.evaluation.grounding import add_grounding
from hf_medvlm.families.medklip.collator import ABSENT, PRESENT, FindingsCollator, entity_states, study_triplets
from hf_medvlm.language.findings import extract_triplets
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.findings import (
    KINDS,
    average_precision,
    best_f1_thresholds,
    confusion,
    finding_scores,
    findings_protocol,
    roc_curve,
)
from hf_medvlm.metrics.findings import auc as area
from hf_medvlm.metrics.grounding import KINDS as GROUNDING_KINDS
from hf_medvlm.metrics.grounding import PROTOCOL as GROUNDING_PROTOCOL
from hf_medvlm.metrics.grounding import box_mask, mean_scores, phrase_scores
from hf_medvlm.metrics.intervals import bootstrap_interval, bootstrap_rows

if TYPE_CHECKING:
    from transformers import EvalPrediction

PUBLISHED_THRESHOLD, PUBLISHED_PATCHES = 0.008, 196  # of the location mask, on a grid of 14 x 14
EXPLAINED = 24  # studies at the head of the split whose boxed entities are explained by Grad-CAM
RESAMPLES = 200  # of the mean AUC and average precision, each of which sorts all scores again


MISSPELT = {"eumonia": "pneumonia"}
"""Of MedKLIP's published list of entities, whose names the rules and the descriptions keep."""


def shown_name(entity: str) -> str:
    """An entity as people read it."""
    return MISSPELT.get(entity, entity)


def published_name(name: str) -> str:
    """An entity as MedKLIP's list spells it."""
    return next((theirs for theirs, ours in MISSPELT.items() if ours == name), name)


def boxed_entities(study: Study, entities: Sequence[str]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Entity -> its boxes on the frontal image; the entities are those that the boxes' phrases name."""
    by_entity: dict[str, list] = {}
    for box in study.frontal_boxes():
        for entity in dict.fromkeys(name for name, _, _ in extract_triplets(box.phrase)):
            if entity in entities:
                by_entity.setdefault(entity, []).append(box.xywh)
    return by_entity


@dataclass
class MedKlipEvaluation(Evaluation):
    """Scores a `MedKlipModel`.

    Args:
        collator: with `training=False`; its entities are the model's, then the held-out ones.
        held_out_embeddings: (H, text_size), descriptions of the last H entities, which were not trained; or None.
        thresholds: (E,), above which a probability says present; set by the first validation split that is scored.
        text_encoder: the BERT that embedded the descriptions, None for hashing; only written down.
        studies: what `compute_metrics` scores, in the order of the evaluation data set.
        model: asked by `compute_metrics` for the held-out entities alone.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        *(*(f"mean_{kind}" for kind in KINDS), "auc/*", "held_out_auc", "held_out_auc/*", *GROUNDING_KINDS),
        *("grounding_n", "pointing_game/*", "held_out_pointing_game"),
    )

    collator: FindingsCollator
    held_out_embeddings: Tensor | None = None
    thresholds: np.ndarray | None = field(default=None, repr=False)
    text_encoder: str | None = None
    studies: Sequence[Study] = ()
    model: Any | None = field(default=None, repr=False)

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """A mean over entities needs one that is present in some studies and absent in others."""
        if metric not in ("mean_auc", "mean_ap") or any(min(pair) for pair in self.class_counts(studies).values()):
            return None
        return f"no entity is present in some of its {len(studies)} studies and absent in others"

    def class_counts(self, studies: Sequence[Study]) -> dict[str, tuple[int, int]]:
        names = list(self.collator.entities[: self.trained])
        by_study = [entity_states(study_triplets(study), names, self.collator.unmentioned) for study in studies]
        states = np.stack(by_study) if by_study else np.zeros((0, len(names)))
        return {
            name: (int((column == PRESENT).sum()), int((column == ABSENT).sum()))
            for name, column in zip(names, states.T, strict=True)
        }

    @property
    def names(self) -> list[str]:
        """The entities as results, pages and predictions name them."""
        return [shown_name(entity) for entity in self.collator.entities]

    @property
    def trained(self) -> int:
        """How many of the entities were trained."""
        return len(self.collator.entities) - (0 if self.held_out_embeddings is None else len(self.held_out_embeddings))

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """Pixels, labels, `size` (B, 2), width and height of the frontal images that have boxes, and `explain` (B, E),
        whose evidence is to be shown: of the first studies what is boxed or, without boxes, what the report states.
        """
        rows, batch, names = as_rows(rows), self.collator(rows), list(self.collator.entities[: self.trained])
        sizes = [self._image_size(row.study) for row in rows]
        stated = [
            [name for name, label in zip(names, of_study, strict=False) if label == 1] for of_study in batch["labels"]
        ]
        wanted = [
            (boxed_entities(row.study, names) or of_study) if row.index < EXPLAINED else ()
            for row, of_study in zip(rows, stated, strict=True)
        ]
        return {
            "pixel_values": batch["pixel_values"],
            "labels": batch["labels"],
            "size": torch.tensor(sizes),
            "explain": torch.tensor([[name in asked for name in names] for asked in wanted]),
        }

    def _image_size(self, study: Study) -> tuple[int, int]:
        if not boxed_entities(study, self.collator.entities):
            return 0, 0
        assert study.frontal is not None, study.study_id
        return open_radiograph(f"{self.collator.image_folder}/{study.frontal.path}").size

    def predict(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What `predict_images` gives, `labels` (B, E), `size` (B, 2), and `evidence` (B, trained, h, w), Grad-CAM
        where `explain` asks for it, else 0.
        """
        outputs = self.predict_images(model, batch)
        height, width = outputs["maps"].shape[-2:]
        evidence = self._evidence(model, batch, (height, width))
        return outputs | {"labels": batch["labels"], "size": batch["size"], "evidence": evidence}

    def collate_images(self, rows: list[Row]) -> dict[str, Any]:
        return self.collator.images(as_rows(rows))

    def predict_images(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`probability` (B, E) of being present and `maps` (B, E, h, w).

        Held-out entities are queried together with the trained ones; the trained ones' answers come from a query
        without them.
        """
        patches, grid = model.get_image_features(batch["pixel_values"], return_grid=True)
        answers = [model.query(patches)]
        if self.held_out_embeddings is not None:
            held_out = self.held_out_embeddings.to(model.entity_embeddings)
            both = model.query(patches, torch.cat((model.entity_embeddings, held_out)))
            answers.append(tuple(part[:, self.trained :] for part in both))
        features, maps = (torch.cat(parts, dim=1) for parts in zip(*answers, strict=True))
        probability = model.classifier(features).float().softmax(-1)[..., 1]
        return {"probability": probability, "maps": maps.unflatten(-1, grid)}

    @property
    def limits(self) -> np.ndarray:
        """(E,), above which a probability says present; one half where no threshold was chosen."""
        names = self.collator.entities
        return np.full(len(names), 0.5) if self.thresholds is None else self.thresholds

    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The entities above their thresholds, in words and as states, and every `probabilities`."""
        names, row = self.names, outputs["probability"].astype(float)
        present = {name: bool(p > limit) for name, p, limit in zip(names, row, self.limits, strict=True)}
        return {
            "prediction": ", ".join(name for name in names if present[name]),
            "scores": dict(zip(names, np.round(row, 5).tolist(), strict=True)),
            "findings_prediction": {name: int(present[name]) for name in names},
        }

    def settings(self) -> dict[str, Any]:
        names, held_out = self.names, self.held_out_embeddings
        return {
            "thresholds": None if self.thresholds is None else dict(zip(names, self.thresholds.tolist(), strict=True)),
            "held_out": {}
            if held_out is None
            else dict(zip(self.collator.entities[self.trained :], held_out.float().tolist(), strict=True)),
            "text_encoder": shared_name(self.text_encoder),
        }

    def collate_for_trainer(self, rows: list[Row]) -> dict[str, Tensor]:
        """Pixels and the labels of the trained entities; the stock `Trainer` asks `forward` for no others."""
        batch = self.collator(rows)
        return {"pixel_values": batch["pixel_values"], "labels": batch["labels"][:, : self.trained]}

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """As `predict`, of what the plain `Trainer` has collected of `forward`.

        Raises:
            ValueError: entities are held out, which `forward` is not asked for, and there is no `model` to ask.
        """
        if self.held_out_embeddings is not None:
            if self.model is None:
                raise ValueError("held-out entities take a pass of their own: give the evaluation model=")
            return run_over(self, self.model, self.studies)
        logits, maps = (np.asarray(part, dtype=np.float32) for part in eval_prediction.predictions[:2])
        odds = logits[..., 1] - logits[..., 0]
        rows, grid = as_rows(self.studies), (math.isqrt(maps.shape[-1]),) * 2  # MedKLIP's images are square
        return {
            "probability": list(1 / (1 + np.exp(-odds))),
            "maps": list(maps.reshape(*maps.shape[:2], *grid)),
            "labels": list(np.asarray(eval_prediction.label_ids)),
            "size": [np.array(self._image_size(row.study)) for row in rows],
            "evidence": [np.zeros((maps.shape[1], *grid), dtype=np.float32)] * len(rows),
        }

    def _evidence(self, model: Any, batch: dict[str, Any], grid: tuple[int, int]) -> Tensor:
        explain = batch["explain"]
        evidence = torch.zeros(*explain.shape, *grid)
        rows, columns = explain.any(1).nonzero().flatten(), explain.any(0).nonzero().flatten()
        sharded = any(hasattr(p, "ds_id") for p in model.parameters())  # ZeRO-3 has no gradients outside its own step
        if len(rows) and not sharded:
            saliency = model.saliency(batch["pixel_values"][rows], columns.tolist()).float().cpu()
            rows, columns = rows.cpu(), columns.cpu()
            evidence[rows[:, None], columns] = saliency * explain.cpu()[rows[:, None], columns, None, None]
        return evidence

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        probability, labels = np.stack(outputs["probability"]).astype(float), np.stack(outputs["labels"]).astype(float)
        labels[labels < 0] = np.nan
        choosing = all(study.split == "validate" for study in studies)
        if choosing:
            self.thresholds = best_f1_thresholds(probability, labels)
        scores = Scores(metrics={}, n=len(studies), predictions=self._predictions(probability, labels, studies))
        unmentioned = "absent" if self.collator.unmentioned == "absent" else "not counted"
        chosen = "chosen on these very studies" if choosing else "chosen on the validation studies"
        how = (
            f"entities as the reports state them, uncertain not counted, not mentioned {unmentioned}; thresholds of "
            f"the best F1 {chosen if self.thresholds is not None else 'not chosen, hence no F1'}"
        )
        self._score_findings(scores, probability, labels, [study.patient_id for study in studies], how)
        self._score_grounding(scores, outputs, studies)
        return scores

    def _score_findings(
        self, scores: Scores, probability: np.ndarray, labels: np.ndarray, patients: list[str], how: str
    ) -> None:
        names, trained = self.names, self.trained
        limits = np.full(len(names), np.nan) if self.thresholds is None else self.thresholds
        shown, truth = probability[:, :trained], labels[:, :trained]
        by_finding = finding_scores(shown, truth, names[:trained], thresholds=limits[:trained])
        constant = finding_scores(np.ones_like(shown), truth, names[:trained])
        means = [f"mean_{kind}" for kind in KINDS]
        how_trained = f"{how}; {findings_protocol(by_finding, names[:trained])}"
        scores.add({name: by_finding[name] for name in means}, facts.FINDINGS, how_trained)
        scores.baselines["all_present"] = {name: constant[name] for name in means}
        for name, measure in {"mean_auc": area, "mean_ap": average_precision}.items():
            scores.intervals[name] = bootstrap_rows(
                partial(_resampled, measure, shown, truth), len(shown), patients, resamples=RESAMPLES
            )
        if trained < len(names):
            apart = finding_scores(
                probability[:, trained:], labels[:, trained:], names[trained:], thresholds=limits[trained:]
            )
            by_finding |= {key: value for key, value in apart.items() if "/" in key}
            held_out = {"held_out_auc": apart["mean_auc"]}
            held_out |= {f"held_out_auc/{name}": apart[f"auc/{name}"] for name in names[trained:]}
            left_out = "entities left out of training, asked for by their description alone; "
            scores.add(held_out, facts.FINDINGS, left_out + findings_protocol(apart, names[trained:]))
            scores.baselines["all_present"]["held_out_auc"] = 0.5
        scores.add({f"auc/{name}": by_finding[f"auc/{name}"] for name in names[:trained]}, facts.FINDINGS, how_trained)
        scores.figures["per_finding"] = {
            name: {kind: by_finding[f"{kind}/{name}"] for kind in (*KINDS, "n", "positives")} for name in names
        }
        scores.figures["roc"] = {name: roc_curve(probability[:, c], labels[:, c]) for c, name in enumerate(names)}
        if self.thresholds is not None:
            cells = {name: confusion(probability[:, c] > limits[c], labels[:, c]) for c, name in enumerate(names)}
            scores.figures["thresholds"] = dict(zip(names, limits.tolist(), strict=True))
            scores.figures["confusion"] = {
                name: {"labels": ["absent", "present"], "matrix": cell.tolist()} for name, cell in cells.items()
            }

    def _score_grounding(self, scores: Scores, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> None:
        names, rows, held_out, shares, patients = self.names, [], [], [], []
        by_entity: dict[str, list[float]] = {}
        for prediction, study, maps, evidence, (width, height) in zip(
            scores.predictions, studies, *(outputs[key] for key in ("maps", "evidence", "size")), strict=True
        ):
            boxes = {shown_name(e): located for e, located in boxed_entities(study, self.collator.entities).items()}
            prediction["boxes"] = [
                {"image": prediction["map_image"], "phrase": entity, "finding": entity, "xywh": list(xywh)}
                for entity, entity_boxes in boxes.items()
                for xywh in entity_boxes
            ]
            shown = [*boxes, *(name for name in _spoken_of(prediction) if name not in boxes)]
            prediction["maps"] = {entity: np.round(maps[names.index(entity)], 5).tolist() for entity in shown}
            prediction["maps"] |= {
                f"{name}, Grad-CAM": np.round(shown, 5).tolist()
                for name, shown in zip(names, evidence, strict=False)
                if shown.any()
            }
            for entity, entity_boxes in boxes.items():
                mask = box_mask(entity_boxes, int(width), int(height))
                located = location_scores(maps[names.index(entity)], mask)
                if names.index(entity) < self.trained:
                    rows.append(located)
                    shares.append(mask.mean())
                    patients.append(study.patient_id)
                else:
                    held_out.append(located)
                by_entity.setdefault(entity, []).append(located["pointing_game"])
        how = (
            "the decoder's attention (mean of layers and heads) for the entity that a box's phrase names, patches as "
            f"blocks of pixels, scaled to [0, 1]; mask above {PUBLISHED_THRESHOLD} x {PUBLISHED_PATCHES} / patches, as "
            "MedKLIP's; boxes of the frontal image"
        )
        add_grounding(scores, rows, how)
        pointing = {f"pointing_game/{name}": float(np.mean(hits)) for name, hits in by_entity.items()}
        if held_out:
            pointing["held_out_pointing_game"] = mean_scores(held_out)["pointing_game"]
        scores.add(pointing, facts.GROUNDING, f"{GROUNDING_PROTOCOL['pointing_game']}; {how}")
        scores.baselines["uniform_map"] = {"pointing_game": float(np.mean(shares)) if shares else float("nan")}
        scores.intervals |= {
            kind: bootstrap_interval([row[kind] for row in rows], patients) for kind in GROUNDING_KINDS
        }

    def _predictions(self, probability: np.ndarray, labels: np.ndarray, studies: list[Study]) -> list[dict[str, Any]]:
        names = self.names
        return [
            {
                "study_id": study.study_id,
                "patient_id": study.patient_id,
                "images": [image.path for image in study.images],
                "map_image": study.images.index(study.frontal),
                "reference": study.text(),
                "findings_reference": {n: None if np.isnan(t) else int(t) for n, t in zip(names, truth, strict=True)},
                **self.describe({"probability": row}),
            }
            for study, row, truth in zip(studies, probability, labels, strict=True)
        ]


def _spoken_of(prediction: Mapping[str, Any], most: int = 6) -> list[str]:
    """The entities that the model or the report calls present, the likeliest first: what a reader wants to see."""
    present = [
        name
        for name in prediction["scores"]
        if 1 in (prediction["findings_prediction"][name], prediction["findings_reference"][name])
    ]
    return sorted(present, key=lambda name: -prediction["scores"][name])[:most]


def shared_name(model: str | None) -> str | None:
    """A Hub id as it is, of a folder on this machine only the last name: what is written here may be shared."""
    return model if model is None or not Path(model).exists() else Path(model).name


def location_scores(weights: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """All grounding measures of one location map.

    Args:
        weights: (h, w), attention, sums to 1. mask: (H, W) bool, at the size of the image.
    """
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(mask.shape, weights.shape, strict=True))
    low, span = weights.min(), max(float(np.ptp(weights)), 1e-12)
    limit = (PUBLISHED_THRESHOLD * PUBLISHED_PATCHES / weights.size - low) / span
    return phrase_scores(((weights - low) / span)[rows][:, columns], mask, mask_threshold=limit)


def _resampled(
    measure: Callable[[np.ndarray, np.ndarray], float], probability: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> float:
    """Mean of `measure` over the entities where it is defined, in one sample of rows."""
    probability, labels = probability[rows], labels[rows]
    known = ~np.isnan(labels)
    values = [measure(probability[k, c], labels[k, c]) for c, k in enumerate(known.T)]
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
