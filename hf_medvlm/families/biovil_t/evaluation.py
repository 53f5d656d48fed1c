"""Evaluation of BioViL-T: progression with and without the prior, phrase grounding, findings, retrieval, zero-shot.

Headline: `task_score`, the measure of the task that is trained: `progression_accuracy`, `mean_auc` or `combined`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.rows import Row, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores, run_over
from hf_medvlm.evaluation.grounding import add_grounding
from hf_medvlm.evaluation.maps import thumbnail_map, to_image_size
from hf_medvlm.evaluation.prompts import sentence_pairs
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.families.biovil_t.collator import PROGRESSIONS, PriorCollator, progression_labels
from hf_medvlm.families.biovil_t.phrase_grounding import similarity_map
from hf_medvlm.families.biovil_t.sentence_similarity import sentence_similarity
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.findings import finding_scores, findings_protocol, label_matrix
from hf_medvlm.metrics.grounding import KINDS, box_mask, mean_scores, phrase_scores
from hf_medvlm.metrics.intervals import bootstrap_interval
from hf_medvlm.metrics.sentence_pairs import PROTOCOL as PAIRS_PROTOCOL
from hf_medvlm.metrics.sentence_pairs import PUBLISHED_THRESHOLD, sentence_pair_scores

if TYPE_CHECKING:
    from transformers import EvalPrediction

PROGRESSION_PROTOCOL = (
    "improving, stable or worsening, for each labelled finding of each study with a prior image; macro: mean recall of "
    "the three classes; majority_class: of each finding in training; without_prior: the same model, its prior withheld"
)
HEADLINES = {"progression": "progression_accuracy", "findings": "mean_auc", "alignment": "combined"}
SHOWN_CELLS = 32  # a side of the maps that are kept for the figures
SHOWN_STUDIES, SHOWN_FINDINGS = 200, 4  # at the head of the split, whose findings have maps without boxes too
SIGMA, SIGMA_GRID = 1.5, 14  # published smoothing, in patches of the published grid; finer than that on smaller grids


@dataclass
class BioViLTEvaluation(RetrievalEvaluation):
    """Scores a `BioViLTModel`.

    Args:
        collator: a `PriorCollator` with `training=False`.
        task: progression, findings or alignment; says which metric is the headline.
        train_studies: whose commonest progression of each finding is the trivial baseline.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        *(*RetrievalEvaluation.METRICS, *KINDS, "grounding_n", "task_score", "nli_*"),
        *("progression_accuracy", "progression_macro_accuracy", "progression_n", "mean_auc", "mean_ap", "mean_f1"),
    )

    collator: PriorCollator
    task: str = "alignment"
    train_studies: Sequence[Study] = ()
    _similar: Tensor | None = field(default=None, init=False, repr=False)

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """The measure of the task needs studies that are labelled for it."""
        metric = HEADLINES[self.task] if metric == "task_score" else metric
        if metric.startswith("progression"):
            findings = self.collator.progression_findings
            later = [study for study in studies if study.study_id in self.collator.priors]
            known = any(state != IGNORE_INDEX for study in later for state in progression_labels(study, findings))
            return None if known else f"none of its {len(studies)} studies has a prior image and a progression"
        if metric in ("mean_auc", "mean_ap"):
            labels = label_matrix([study.labels for study in studies], self.collator.findings)
            both = any({0.0, 1.0} <= set(column.tolist()) for column in labels.T)
            return None if both else f"none of its {len(studies)} studies is labelled with and others without a finding"
        return super().undefined(metric, studies)

    @property
    def _pairs(self) -> tuple[list[tuple[str, str]], list[bool]]:
        return sentence_pairs(self.findings)

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """The collator's batch; `phrases`, the tokenised phrases of all boxes; `sizes` (B, 2) of images with maps."""
        batch = self.collate_for_trainer(rows)
        batch["phrase_counts"] = [len(located_phrases(row.study)) for row in rows]
        batch["sizes"] = torch.tensor([self._image_size(row) for row in as_rows(rows)])
        phrases = [phrase for row in rows for phrase in located_phrases(row.study)]
        batch["phrases"] = self.collator.tokenize(phrases) if phrases else None
        return batch

    def collate_for_trainer(self, rows: list[Row]) -> dict[str, Any]:
        """The collator's batch, with each study's place in the split as `labels`, which a stock trainer asks for."""
        return self.collator(rows) | {"labels": torch.tensor([row.index for row in as_rows(rows)])}

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """As `predict`, in a pass of its own: `forward` tells neither the answers without the prior nor the maps of the
        boxes' phrases.
        """
        return run_over(self, self.model, self.studies)

    def _image_size(self, row: Row) -> tuple[int, int]:
        """Width and height of the image whose maps are kept, in pixels; 0 and 0 of the others."""
        study = row.study
        if not located_phrases(study) and row.index >= SHOWN_STUDIES:
            return 0, 0
        assert study.frontal is not None, study.study_id
        return open_radiograph(f"{self.collator.image_folder}/{study.frontal.path}").size

    def predict(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What retrieval needs, and of each study: `progression` and `progression_without_prior` (B, F, 3), `findings`
        (B, C) logits, `similarity` (B, most phrases, h, w) with NaN for phrases that are not there, `size` (B, 2).
        """
        has_text = model.config.text_config is not None
        names = ["pixel_values", "previous_pixel_values", "has_previous"]
        if not model.config.temporal:
            names = names[:1]
        output = model(**{name: batch[name] for name in names + ["input_ids", "attention_mask"] * has_text})
        alone = output
        if model.config.temporal and (has_text or output.progression_logits is not None):
            alone = model(pixel_values=batch["pixel_values"])
        outputs = {"size": batch["sizes"]} | self._of_the_image(
            model, output, output.representations.get("logit_scale")
        )
        if output.progression_logits is not None:
            outputs["progression_without_prior"] = alone.progression_logits
        if not has_text:
            return outputs
        if self._similar is None:
            self._similar = sentence_similarity(model, self.collator.processor.tokenizer, self._pairs[0])
        return outputs | {
            "text_embeds": output.text_embeds,
            "scalar/logit_scale": output.representations["logit_scale"].expand(len(output.image_embeds)),
            "similarity": self._similarities(model, alone.patch_embeds, batch),
            "finding_maps": self._finding_maps(alone.patch_embeds),
        }

    def predict_images(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`image_embeds` (B, D), `zero_shot` (B, C) of a model with a text side, `progression` and `findings` of its
        classifiers, and `has_previous` (B,).
        """
        names = ["pixel_values", "previous_pixel_values", "has_previous"][: 3 if model.config.temporal else 1]
        output = model(**{name: batch[name] for name in names})
        scale = model.scale if model.config.text_config is not None else None
        return self._of_the_image(model, output, scale) | {"has_previous": batch["has_previous"]}

    def _of_the_image(self, model: Any, output: Any, scale: Tensor | None) -> dict[str, Tensor]:
        """What `output` says of each image, whatever its report says; zero-shot where there is a `scale`."""
        logits = {"progression": output.progression_logits, "findings": output.finding_logits}
        outputs = {name: value for name, value in logits.items() if value is not None}
        outputs["image_embeds"] = output.image_embeds
        if scale is not None:
            if self._prompts is None:
                self._prompts = self._embed_prompts(model, output.image_embeds.device)
            outputs["zero_shot"] = self.margins(output.image_embeds, scale)
        return outputs

    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Findings of the trained classifier where there is one, else zero-shot; progression where there is a prior."""
        described = super().describe(outputs) if "zero_shot" in outputs else {}
        if "findings" in outputs:
            likely = (1 / (1 + np.exp(-outputs["findings"].astype(float)))).tolist()
            described["probabilities"] = dict(zip(self.collator.findings, likely, strict=True))
            described["findings_prediction"] = {name: int(p > 0.5) for name, p in described["probabilities"].items()}
        if "progression" in outputs and outputs["has_previous"]:
            states = outputs["progression"].argmax(-1)
            described["progression_prediction"] = {
                name: PROGRESSIONS[state]
                for name, state in zip(self.collator.progression_findings, states, strict=True)
            }
        return described

    def _finding_maps(self, patch_embeds: Tensor) -> Tensor:
        """Smoothed cosine maps of the sentences for each finding, (B, C, h, w)."""
        sigma = SIGMA * min(1, patch_embeds.shape[-2] / SIGMA_GRID)
        assert self._prompts is not None, "predict embeds the prompts"
        wanted = self._prompts[:, 0].to(patch_embeds)
        maps = [[similarity_map(grid.permute(1, 2, 0), text, sigma) for text in wanted] for grid in patch_embeds]
        return torch.stack([torch.stack(of_image) for of_image in maps])

    def _similarities(self, model: Any, patch_embeds: Tensor, batch: dict[str, Any]) -> Tensor:
        """Smoothed cosine maps of each study's phrases, (B, most phrases of a study, h, w), NaN where there is none."""
        counts, (height, width) = batch["phrase_counts"], patch_embeds.shape[-2:]
        maps = torch.full((len(counts), max(counts), height, width), float("nan"))
        if batch["phrases"] is None:
            return maps
        texts = F.normalize(model.get_text_features(**batch["phrases"]).float(), dim=-1).split(counts)
        sigma = SIGMA * min(1, height / SIGMA_GRID)
        for study, (patches, embeds) in enumerate(zip(patch_embeds, texts, strict=True)):
            for place, text in enumerate(embeds):
                maps[study, place] = similarity_map(patches.permute(1, 2, 0), text, sigma)
        return maps

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        if "text_embeds" in outputs:
            scores = super().score(outputs, studies)
            self._keep_maps(scores, outputs, studies)
            self._score_grounding(scores, outputs, studies)
            self._score_sentences(scores)
        else:
            ids = [{"study_id": study.study_id, "patient_id": study.patient_id} for study in studies]
            scores = Scores(metrics={}, n=len(studies), predictions=ids)
        if "progression" in outputs:
            self._score_progression(scores, outputs, studies)
        if "findings" in outputs:
            self._score_finding_head(scores, np.stack(outputs["findings"]), studies)
        headline = HEADLINES[self.task]
        value = {"task_score": scores.metrics.get(headline, float("nan"))}
        unit = scores.facts[headline].unit if headline in scores.facts else facts.FRACTION
        scores.add(value, facts.TRAINING, f"{headline}, the headline of --task {self.task}", unit=unit)
        return scores

    def _score_sentences(self, scores: Scores) -> None:
        same = np.array(self._pairs[1])
        assert self._similar is not None, "predict compares the sentences"
        pair_scores = sentence_pair_scores(self._similar.numpy(), same)
        self._similar = None  # the next evaluation has other weights
        scores.baselines["all_contradict"] = {"nli_accuracy": float(1 - same.mean()), "nli_auc": 0.5}
        how = (
            f"{len(same)} pairs of the zero-shot prompts of {len(self.findings)} findings: two for a finding "
            f"or two against it are paraphrases, one of each a contradiction; threshold {PUBLISHED_THRESHOLD}; "
            f"{PAIRS_PROTOCOL}"
        )
        scores.add({f"nli_{name}": value for name, value in pair_scores.items()}, facts.SENTENCES, how)

    def _score_progression(self, scores: Scores, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> None:
        findings = self.collator.progression_findings
        labels = np.array([progression_labels(study, findings) for study in studies])  # (N, F)
        labels[[study.study_id not in self.collator.priors for study in studies]] = IGNORE_INDEX
        learnt = np.array([progression_labels(study, findings) for study in self.train_studies]).reshape(
            -1, len(findings)
        )
        counts = np.stack([(learnt == state).sum(0) for state in range(len(PROGRESSIONS))])  # (3, F)
        guesses = {
            "": np.stack(outputs["progression"]).argmax(-1),
            "without_prior": np.stack(outputs["progression_without_prior"]).argmax(-1),
            "majority_class": np.broadcast_to(counts.argmax(0), labels.shape),
        }
        known = labels != IGNORE_INDEX
        for system, guess in guesses.items():
            right = (guess == labels) & known
            recalls = [right[labels == state].mean() for state in range(len(PROGRESSIONS)) if (labels == state).any()]
            rates = {
                "progression_accuracy": right.sum() / known.sum() if known.any() else float("nan"),
                "progression_macro_accuracy": np.mean(recalls) if recalls else float("nan"),
            }
            rates = {name: float(value) for name, value in rates.items()}
            if system:
                scores.baselines.setdefault(system, {}).update(rates)
            else:
                scores.add(rates, facts.CHANGE, PROGRESSION_PROTOCOL)
        right = np.where(known, guesses[""] == labels, np.nan)
        patients = [study.patient_id for row, study in zip(right, studies, strict=True) for _ in row]
        scores.intervals["progression_accuracy"] = bootstrap_interval(right.ravel(), patients)
        count = {"progression_n": int(known.sum())}
        scores.add(count, facts.CHANGE, PROGRESSION_PROTOCOL, better=facts.NEITHER, unit="labels")
        cells = np.zeros((len(PROGRESSIONS), len(PROGRESSIONS)), dtype=int)
        np.add.at(cells, (labels[known], guesses[""][known]), 1)
        scores.figures.setdefault("confusion", {})["Progression"] = {
            "labels": list(PROGRESSIONS),
            "matrix": cells.tolist(),
        }
        for prediction, row, truth in zip(scores.predictions, guesses[""], labels, strict=True):
            asked = [c for c in range(len(findings)) if truth[c] != IGNORE_INDEX]
            prediction["progression_prediction"] = {findings[c]: PROGRESSIONS[row[c]] for c in asked}
            prediction["progression_reference"] = {findings[c]: PROGRESSIONS[truth[c]] for c in asked}

    def _score_finding_head(self, scores: Scores, logits: np.ndarray, studies: list[Study]) -> None:
        names = self.collator.findings
        labels = label_matrix([study.labels for study in studies], names)
        by_finding = finding_scores(logits, labels, names, thresholds=0.0)
        how = f"the trained classifier, present above a probability of 0.5; {findings_protocol(by_finding, names)}"
        scores.add({name: by_finding[name] for name in ("mean_auc", "mean_ap", "mean_f1")}, facts.FINDINGS, how)
        scores.add({name: value for name, value in by_finding.items() if name.startswith("auc/")}, facts.FINDINGS, how)

    def _keep_maps(self, scores: Scores, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> None:
        """Where the findings that the model or the report calls present are, with boxes or without: for the pages."""
        processor = self.collator.processor.image_processor
        for number, (prediction, study) in enumerate(zip(scores.predictions, studies, strict=True)):
            prediction["maps"] = {}
            prediction["map_image"] = study.images.index(study.frontal) if study.images else 0
            width, height = map(int, outputs["size"][number])
            if not width:
                continue
            study_outputs = {name: rows[number] for name, rows in outputs.items() if name in ("zero_shot", "findings")}
            described = self.describe(study_outputs)
            likely, present = described["probabilities"], described["findings_prediction"]
            names = [n for n in self.findings if n != "No Finding" and 1 in (present.get(n), study.labels.get(n))]
            for name in sorted(names, key=lambda name: -likely.get(name, 0.0))[:SHOWN_FINDINGS]:
                grid = torch.from_numpy(outputs["finding_maps"][number][self.findings.index(name)])
                prediction["maps"][name] = thumbnail_map(grid, (width, height), processor, SHOWN_CELLS)

    def _score_grounding(self, scores: Scores, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> None:
        if not any(map(located_phrases, studies)):
            return
        processor = self.collator.processor.image_processor
        rows, guesses, patients = [], [], []
        for prediction, study, maps, (width, height) in zip(
            scores.predictions, studies, outputs["similarity"], outputs["size"], strict=True
        ):
            rng = np.random.default_rng(zlib.crc32(study.study_id.encode()))
            sizes = int(width), int(height), processor.resize_size, processor.crop_size
            for (phrase, boxes), similarity in zip(located_phrases(study).items(), maps, strict=False):
                mask = box_mask(boxes, width, height)
                noise = torch.from_numpy(rng.normal(size=similarity.shape).astype(np.float32))
                noise = similarity_map(noise[..., None], torch.ones(1), SIGMA * min(1, len(noise) / SIGMA_GRID))
                whole, random = (
                    to_image_size(grid, *sizes, interpolation="bilinear")
                    for grid in (torch.from_numpy(similarity), noise)
                )
                rows.append(phrase_scores(whole, mask))
                guesses.append(phrase_scores(random, mask))
                step = -(-max(whole.shape) // SHOWN_CELLS)
                prediction["maps"][phrase] = whole[step // 2 :: step, step // 2 :: step].round(4).tolist()
                patients.append(study.patient_id)
        how = (
            "cosine of patches with each box's phrase, from the current image alone as in the published engine, "
            "smoothed by a Gaussian of 1.5 patches (of 14 a side), bilinear to the image's size; what the model's crop "
            "leaves out counts as not found; boxes of the frontal image"
        )
        add_grounding(scores, rows, how)
        scores.baselines["random_map"] = mean_scores(guesses)
        scores.intervals |= {kind: bootstrap_interval([row[kind] for row in rows], patients) for kind in KINDS}


def located_phrases(study: Study) -> dict[str, list[tuple[float, float, float, float]]]:
    """phrase -> its boxes on the frontal image, in the order of the boxes."""
    by_phrase: dict[str, list] = {}
    for box in study.frontal_boxes():
        by_phrase.setdefault(box.phrase, []).append(box.xywh)
    return by_phrase
