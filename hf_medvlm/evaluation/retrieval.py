"""Evaluation of models that put radiographs and reports into one space: retrieval, zero-shot findings, a linear probe.

Retrieval is over the whole split, never within batches. Headline: `combined`, 0.7 x mean recall + 0.3 x AUC, both in
percent; the weights are an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_medvlm.collators.pairs import PairCollator, pair_id, same_text
from hf_medvlm.data.counting import count_pairs
from hf_medvlm.data.rows import Row, StudyRows, as_rows
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Evaluation, Scores, moved, to_numpy
from hf_medvlm.evaluation.probe import probe_scores
from hf_medvlm.evaluation.prompts import prompts_for
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.findings import KINDS, confusion, finding_scores, findings_protocol, label_matrix, roc_curve
from hf_medvlm.metrics.intervals import bootstrap_interval
from hf_medvlm.metrics.retrieval import CUTOFFS, query_scores, retrieval_fact, retrieval_scores
from hf_medvlm.models.encoding import IMAGE_INPUTS as INPUTS

if TYPE_CHECKING:
    from transformers import EvalPrediction

SAME = 1e-6  # the largest difference of features that are the same
LOSS_BLOCK = 64  # pairs that one evaluation loss tells apart, in the order of the split, whatever the batch size


@dataclass
class RetrievalEvaluation(Evaluation):
    """Scores a dual encoder of any kind.

    Args:
        collator: with `training=False`.
        model: whose `loss_terms_of` gives the evaluation loss (it reads the config alone).
        findings: what zero-shot prompts and the probe tell; findings without both classes in the split come out as NaN.
        probe_rows: training studies that the linear probe learns from; None for no probe. The trainer fills
            `probe_outputs` with their features before each scoring.
        studies: what `compute_metrics` scores, in the order of the evaluation data set.
        combined_weights: of the mean recall and of the AUC in `combined`.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        *(
            "[it]2[it]_recall@*",
            "[it]2[it]_median_rank",
            "[it]2[it]_mrr",
            "gallery_size",
            "unique_texts",
            "*_recall@*",
            "mean_recall",
            "combined",
            "loss",
            "gflops",
        ),
        *("temperature", "probe_auc", "probe_ap", "auc/*", *(f"zero_shot_{kind}" for kind in KINDS)),
    )

    collator: PairCollator
    model: Any
    findings: Sequence[str] = CHEXPERT_14
    probe_rows: StudyRows | None = None
    probe_outputs: dict[str, list[np.ndarray]] | None = None
    studies: Sequence[Study] = ()
    combined_weights: tuple[float, float] = (0.7, 0.3)
    _prompts: Tensor | None = field(default=None, init=False, repr=False)
    _gflops: float = field(default=float("nan"), init=False)

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """A mean over findings needs one that some studies have and others have not."""
        if metric not in ("zero_shot_auc", "zero_shot_ap", "probe_auc", "probe_ap", "mean_auc", "mean_ap"):
            return None
        both = any(min(pair) for pair in self.class_counts(studies).values())
        return None if both else f"none of its {len(studies)} studies is labelled with and others without a finding"

    def instead(self) -> tuple[tuple[str, bool], ...]:
        return (("combined", True),)

    def class_counts(self, studies: Sequence[Study]) -> dict[str, tuple[int, int]]:
        counts = count_pairs(studies, "labels")
        return {name: (counts[name, 1], counts[name, 0]) for name in self.findings}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """The collator's batch, with each study's place in the split as `labels`, which a stock trainer asks for."""
        return self.collator(rows) | {"labels": torch.tensor([row.index for row in as_rows(rows)])}

    collate_for_trainer = collate

    @torch.no_grad()
    def preflight(self, model: Any, texts: Sequence[str]) -> list[tuple[str, str, str]]:
        """Whether different texts get different features; lines of the preflight, (state, name, text).

        The texts begin alike, so that a tower that sees only their beginning is found out: a decoder's first token.
        """
        probes = [f"Report: {text}" for text in dict.fromkeys(map(same_text, texts)) if text][:8]
        if len(probes) < 2:
            return []
        training, device = model.training, next(model.parameters()).device
        tokens = {name: value.to(device) for name, value in self.collator.tokenize(probes).items()}
        features = F.normalize(model.eval().get_text_features(**tokens).float(), dim=-1)
        model.train(training)
        spread = float((features - features.mean(0)).abs().max())
        pooling = getattr(model.config, "text_pooling", None)
        if spread < SAME:
            way_out = "a decoder needs --text_pooling last, others cls or mean; or raise --max_length"
            sentence = (
                f"{len(probes)} different texts all get the same features (text_pooling {pooling!r}): nothing could"
            )
            return [("STOP", "texts", f"{sentence} be learnt; {way_out}")]
        return [("ok", "texts", f"{len(probes)} different texts get different features (text_pooling {pooling!r})")]

    def predict(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        output = model(**{name: batch[name] for name in (*INPUTS, "input_ids", "attention_mask") if name in batch})
        if self._prompts is None:
            self._prompts = self._embed_prompts(model, output.image_embeds.device)
            self._gflops = image_gflops(model, {name: batch[name][:1] for name in INPUTS if name in batch})
        return self.tensors(model, output, batch)

    def tensors(self, model: Any, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Embeddings (B, D), the loss's scalars (B,) each, and `zero_shot` (B, C)."""
        scalars = {n: v.expand(len(output.image_embeds)) for n, v in output.representations.items() if not v.dim()}
        return {
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "zero_shot": self.margins(output.image_embeds, output.representations["logit_scale"]),
            **{f"scalar/{name}": value for name, value in scalars.items()},
        }

    def margins(self, image_embeds: Tensor, scale: Tensor) -> Tensor:
        """(B, D), normalised -> (B, C): how much nearer each image is to the sentences for than to those against."""
        assert self._prompts is not None, "predict embeds the prompts"
        sides = torch.einsum("bd,csd->bcs", image_embeds, self._prompts.to(image_embeds))
        return (sides[..., 0] - sides[..., 1]) * scale

    def collate_images(self, rows: list[Row]) -> dict[str, Any]:
        return self.collator.images(rows)

    def predict_images(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`image_embeds` (B, D), normalised, and `zero_shot` (B, C)."""
        images = {name: batch[name] for name in INPUTS if name in batch}
        embeds = F.normalize(model.get_image_features(**images).float(), dim=-1)
        if self._prompts is None:
            self._prompts = self._embed_prompts(model, embeds.device)
        return {"image_embeds": embeds, "zero_shot": self.margins(embeds, model.scale.float())}

    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """`zero_shot` margins, their `probabilities` (a softmax over the two sides), and what is above one half."""
        margins = outputs["zero_shot"].astype(float)
        likely = dict(zip(self.findings, (1 / (1 + np.exp(-margins))).tolist(), strict=True))
        return {
            "zero_shot": dict(zip(self.findings, outputs["zero_shot"].tolist(), strict=True)),
            "probabilities": likely,
            "findings_prediction": {name: int(value > 0.5) for name, value in likely.items()},
        }

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.collator.max_length, "findings": list(self.findings)}

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """As `predict`, of what the plain `Trainer` has collected of `forward`."""
        images, texts = (np.asarray(rows) for rows in eval_prediction.predictions[1:3])  # behind logits_per_image
        model, device = self.model, next(self.model.parameters()).device
        with torch.no_grad():
            batch = moved(self.collate(as_rows(self.studies[:1])), device)
            probe = self.predict(model.eval(), batch)  # one study, for the scalars, the prompts and the cost
        scalars = {name: value for name, value in probe.items() if name.startswith("scalar/")}
        margins = self.margins(torch.from_numpy(images), scalars["scalar/logit_scale"][0].float().cpu())
        outputs = {"image_embeds": list(images), "text_embeds": list(texts), "zero_shot": list(margins.numpy())}
        return outputs | {name: [to_numpy(value[0])] * len(images) for name, value in scalars.items()}

    def _embed_prompts(self, model: Any, device: torch.device) -> Tensor:
        """(C, 2, D): for and against each finding, the normalised mean of its sentences' embeddings."""
        sides = [side for finding in self.findings for side in prompts_for(finding)]
        tokens = self.collator.tokenize([text for side in sides for text in side])
        features = model.get_text_features(**{name: value.to(device) for name, value in tokens.items()}).float()
        means = [part.mean(0) for part in features.split([len(side) for side in sides])]
        return F.normalize(torch.stack(means), dim=-1).view(len(self.findings), 2, -1)

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        self._prompts = None  # the next evaluation has other weights
        images, texts = np.stack(outputs["image_embeds"]), np.stack(outputs["text_embeds"])
        reports = [self.collator.text(study) for study in studies]
        groups = [same_text(report) for report in reports]
        patients = [study.patient_id for study in studies]
        retrieval, queries = retrieval_scores(images, texts, groups), query_scores(images, texts, groups)
        chance = {name: retrieval.pop(name) for name in list(retrieval) if name.startswith("chance_")}
        ways = [f"{way}_{name}" for way in ("i2t", "t2i") for name in ("median_rank", "mrr", *_RECALLS)]
        random = {way: chance["chance_" + way[4:]] for way in ways}
        random["mean_recall"] = float(np.mean([random[f"i2t_{name}"] for name in _RECALLS]))
        scores = Scores(metrics={}, n=len(studies), baselines={"random_order": random})
        scores.intervals = {name: bootstrap_interval(queries[name], patients) for name in ways if name in queries}
        for name, value in retrieval.items():
            scores.metrics[name], scores.facts[name] = value, retrieval_fact(name, retrieval)
        for name in ("i2t_rank", "t2i_rank"):
            scores.facts[name] = retrieval_fact(name, retrieval)
        self._score_findings(scores, np.stack(outputs["zero_shot"]), studies)
        if self.probe_outputs is not None:
            self._score_probe(scores, images, studies)
        auc = scores.metrics.get("probe_auc", scores.metrics["zero_shot_auc"])
        weighted = list(zip(self.combined_weights, (retrieval["mean_recall"], auc), strict=True))
        known = [(weight, 100 * value) for weight, value in weighted if not np.isnan(value)]
        combined = sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
        recall_weight, auc_weight = self.combined_weights
        how = f"{recall_weight:g} x mean_recall + {auc_weight:g} x probe_auc (else zero_shot_auc)"
        scores.add({"combined": combined}, facts.RETRIEVAL, how, unit="percent")
        how = f"contrastive term, mean over blocks of {LOSS_BLOCK} pairs in the order of the split"
        scores.add({"loss": self._loss(outputs, reports)}, facts.TRAINING, how, better=facts.LOWER, unit="nats")
        how = "multiply-adds counted twice, of one image through the image side"
        scores.add({"gflops": self._gflops}, facts.COST, how, better=facts.LOWER, unit="GFLOPs")
        temperature = {"temperature": 1 / float(outputs["scalar/logit_scale"][0])}
        how = "learnt temperature of the contrastive loss; a setting, no score"
        scores.add(temperature, facts.TRAINING, how, better=facts.NEITHER, unit="")
        present = [[n for n, m in zip(self.findings, row, strict=True) if m > 0] for row in outputs["zero_shot"]]
        scores.predictions = [
            {
                "study_id": study.study_id,
                "patient_id": study.patient_id,
                "images": [image.path for image in study.images],
                "reference": report,
                "scores": {name: float(queries[name][i]) for name in ("i2t_rank", "t2i_rank")},
                "findings_reference": dict(study.labels),
                "zero_shot": dict(zip(self.findings, outputs["zero_shot"][i].tolist(), strict=True)),
                "prediction": ", ".join(present[i]),
                "boxes": [
                    {"image": b.image, "phrase": b.phrase, "xywh": list(b.xywh), "finding": b.finding}
                    for b in study.boxes
                ],
            }
            for i, (study, report) in enumerate(zip(studies, reports, strict=True))
        ]
        return scores

    def _score_findings(self, scores: Scores, margins: np.ndarray, studies: list[Study]) -> None:
        labels = label_matrix([study.labels for study in studies], self.findings)
        measures = finding_scores(margins, labels, self.findings, thresholds=0.0)
        how = "present where the image is nearer to the sentences for than against; uncertain left out; "
        how += findings_protocol(measures, self.findings)
        scores.add({f"zero_shot_{kind}": measures[f"mean_{kind}"] for kind in KINDS}, facts.FINDINGS, how)
        scores.add({name: v for name, v in measures.items() if name.startswith("auc/")}, facts.FINDINGS, how)
        more_present = np.nansum(labels - 0.5, axis=0) > 0
        majority_sides = np.broadcast_to(np.where(more_present, 1.0, -1.0), labels.shape)
        majority = finding_scores(majority_sides, labels, self.findings, thresholds=0.0)
        scores.baselines["majority_label"] = {f"zero_shot_{kind}": majority[f"mean_{kind}"] for kind in KINDS}
        scores.figures["per_finding"] = {
            name: {kind: measures[f"{kind}/{name}"] for kind in (*KINDS, "n", "positives")} for name in self.findings
        }
        columns = dict(zip(self.findings, zip(margins.T, labels.T, strict=True), strict=True))
        scores.figures["roc"] = {name: roc_curve(*column) for name, column in columns.items()}
        scores.figures["confusion"] = {
            name: {"labels": ["absent", "present"], "matrix": confusion(margin > 0, label).tolist()}
            for name, (margin, label) in columns.items()
        }

    def _score_probe(self, scores: Scores, images: np.ndarray, studies: list[Study]) -> None:
        assert self.probe_outputs is not None and self.probe_rows is not None  # the trainer fills both or neither
        learnt_from = np.stack(self.probe_outputs["image_embeds"])
        train = label_matrix([study.labels for study in self.probe_rows.studies], self.findings)
        test = label_matrix([study.labels for study in studies], self.findings)
        measures = finding_scores(probe_scores(learnt_from, train, images), test, self.findings)
        how = f"logistic regression on the image embeddings of {len(train)} training studies, one a finding; "
        how += findings_protocol(measures, self.findings)
        scores.add({"probe_auc": measures["mean_auc"], "probe_ap": measures["mean_ap"]}, facts.FINDINGS, how)
        for name, row in scores.figures["per_finding"].items():
            row |= {"probe_auc": measures[f"auc/{name}"], "probe_ap": measures[f"ap/{name}"]}

    def _loss(self, outputs: dict[str, list[np.ndarray]], reports: list[str]) -> float:
        """The mean contrastive loss over blocks of the split; a last block of one pair is left out."""
        rows = {name: torch.from_numpy(np.stack(outputs[name])) for name in ("image_embeds", "text_embeds")}
        rows["pair_ids"] = torch.tensor([pair_id(report) for report in reports])
        scalars = {n[7:]: torch.tensor(float(v[0])) for n, v in outputs.items() if n.startswith("scalar/")}
        total, counted = 0.0, 0
        for start in range(0, len(reports), LOSS_BLOCK):
            block = {name: value[start : start + LOSS_BLOCK] for name, value in rows.items()}
            count = len(block["pair_ids"])
            if count > 1:
                total += count * self.model.contrast(block | scalars).item()
                counted += count
        return total / counted if counted else float("nan")


@torch.no_grad()
def image_gflops(model: Any, images: dict[str, Tensor]) -> float:
    """Billions of floating-point operations to embed one image, `{"pixel_values": (1, 3, H, W)}`."""
    with FlopCounterMode(display=False) as counter:
        model.get_image_features(**images)
    return counter.get_total_flops() / 1e9


_RECALLS = tuple(f"recall@{k}" for k in CUTOFFS)
