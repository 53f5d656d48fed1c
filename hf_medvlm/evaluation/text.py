"""Evaluation of models that write: `generate()` on prompt-only batches, scored as text and by its findings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_medvlm.data.images import open_radiograph
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.attention import WordAttention, phrase_maps, written_findings
from hf_medvlm.evaluation.base import Evaluation, Scores
from hf_medvlm.evaluation.maps import thumbnail_map
from hf_medvlm.evaluation.reports import score_reports
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.language.findings import label_report
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.audit import KINDS as AUDITED_ERRORS
from hf_medvlm.metrics.audit import WITHOUT_PRIOR
from hf_medvlm.metrics.clinical import missing_lines
from hf_medvlm.metrics.clinical.judge import Judge
from hf_medvlm.metrics.findings_text import findings_f1

if TYPE_CHECKING:
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)
STOPPED, CUT = 0, 1
WITHOUT_MAPS = "without_maps"  # of a results file's `figures`: why there are none
SHOWN_STUDIES, SHOWN_FINDINGS = 24, 3  # on the pages, with maps of where the model looked


class GenerativeCollator(Protocol):
    """What a collator of a model that writes offers."""

    def __call__(self, rows: list[Row], /) -> dict[str, Tensor]: ...

    def prompts(self, rows: list[Row], /) -> dict[str, Tensor]: ...

    def target(self, study: Study) -> str: ...

    def settings(self) -> dict[str, Any]: ...

    @property
    def image_folder(self) -> Any: ...

    @property
    def processor(self) -> Any: ...


class TokenLoss(Protocol):
    """An objective (`training/objective.py`) whose `per_study` holds `nll` and `tokens`."""

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Any: ...


@dataclass
class TextEvaluation(Evaluation):
    """Loss on the reference, and scores of what the model writes by itself.

    Args:
        collator: with `training=False`.
        tokenizer: turns generated ids into text.
        train_reports: the training targets; the most frequent one is a baseline.
        objective: what the model is trained for, which the loss of the split is scored by; its `per_study` holds
            `nll` and `tokens`. Where there are only images to write about, none is needed.
        max_new_tokens: where generation stops if the model does not end by itself; such reports are counted.
        num_beams: 1 is greedy.
        studies: what `compute_metrics` scores, in the order of the evaluation data set.
        clinical_metrics: names of `hf_medvlm.metrics.clinical`; those without their weights are named once.
        clinical_weights: the folder of their weights.
        judge: the model behind those clinical metrics that ask one.
        look: where the model looked for each word; the pages then show it of the first studies' written findings.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        *("bleu[1-4]", "sacrebleu", "rouge[12]", "rougeL", "rougeLsum", "meteor", "cider"),
        *("findings_f1_micro", "findings_f1_macro", "distinct_predictions", "loss", "cut_off_rate"),
        *(f"audit_{kind}" for kind in (*AUDITED_ERRORS, WITHOUT_PRIOR)),
    )

    collator: GenerativeCollator
    tokenizer: PreTrainedTokenizerBase
    train_reports: Sequence[str]
    objective: TokenLoss | None = None
    max_new_tokens: int = 128
    num_beams: int = 1
    studies: Sequence[Study] = ()
    clinical_metrics: Sequence[str] = ()
    clinical_weights: str | None = None
    judge: Judge | None = None
    look: WordAttention | None = None
    without_maps: str = field(default="", init=False, repr=False)
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def knows(self, name: str) -> bool:
        """As the base class; any other name may be that of a clinical metric, where some were asked for."""
        return super().knows(name) or bool(self.clinical_metrics)

    def undefined(self, metric: str, studies: Sequence[Study]) -> str | None:
        """F1 over findings needs a reference that names one."""
        if not metric.startswith("findings_f1"):
            return None
        texts = ([self.collator.target(study)] for study in studies)
        known = any(not np.isnan(findings_f1(text, text).metrics.get(metric, 0.0)) for text in texts)
        return None if known else f"none of its {len(studies)} texts names a finding that is present"

    def instead(self) -> tuple[tuple[str, bool], ...]:
        return (("loss", False),)

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        shown = torch.tensor([row.index < SHOWN_STUDIES for row in rows])
        return {"loss": self.collator(rows), "prompts": self.collator.prompts(rows), "shown": shown}

    def collate_images(self, rows: list[Row]) -> dict[str, Any]:
        return {"prompts": self.collator.prompts(rows)}

    def predict(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`nll` and `tokens` of the reference (B,), and what `predict_images` gives."""
        if self.objective is None:
            raise ValueError(
                f"{type(self).__name__} needs the objective that the model is trained for, to score its loss"
            )
        losses = self.objective(model, batch["loss"]).per_study
        outputs = {name: losses[name] for name in ("nll", "tokens")} | self.predict_images(model, batch)
        if self.look is not None:
            outputs["maps"] = self._maps(self.look, model, batch, outputs["generated"])
        return outputs

    def _maps(self, look: WordAttention, model: Any, batch: dict[str, Any], generated: Tensor) -> Tensor:
        """(B, SHOWN_FINDINGS, h, w), where the model looked for the findings that it wrote of; NaN for no finding, and
        no cells for a batch of which nothing is shown."""
        drawings: dict[tuple[int, int], Tensor] = {}
        sharded = any(hasattr(p, "ds_id") for p in model.parameters())  # ZeRO-3: every process would have to take part
        for row in batch["shown"].nonzero().flatten().tolist() if not sharded else ():
            text = self.text_of(generated[row].cpu().numpy())
            phrases = written_findings(text)[:SHOWN_FINDINGS]
            try:
                drawn = phrase_maps(look, model, self.tokenizer, *self.prompts_of(batch, row), text, phrases)
            except (ValueError, NotImplementedError) as error:  # the latter of a tokenizer without offsets
                self.without_maps = f"no maps of where it looked: {error}"
                break
            drawings |= {(row, place): drawn[phrase] for place, phrase in enumerate(phrases)}
        shape = next((grid.shape for grid in drawings.values()), (0, 0))
        maps = torch.full((len(generated), SHOWN_FINDINGS, *shape), float("nan"))
        for (row, place), grid in drawings.items():
            maps[row, place] = grid
        return maps

    def prompts_of(self, batch: dict[str, Any], row: int) -> tuple[Mapping[str, Tensor], int]:
        """The prompts in which a study's is found, and its row there."""
        return batch["prompts"], row

    def predict_images(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`generated` ids (B, T) without the prompt, and `cut` (B,)."""
        prompts = batch["prompts"]
        ids = model.generate(
            **prompts, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, do_sample=False, use_cache=True
        )
        generated = ids[:, prompts["input_ids"].shape[1] :]
        ended = torch.isin(generated, torch.tensor(self.stop_ids(model), device=generated.device))
        cut = torch.where(ended.any(1), STOPPED, CUT)
        return {"generated": generated, "cut": cut}

    def stop_ids(self, model: nn.Module) -> list[int]:
        """The ids that end a report."""
        return [i for i in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id) if i is not None]

    def text_of(self, generated: np.ndarray) -> str:
        """The text of one row of generated ids."""
        return str(self.tokenizer.decode(generated, skip_special_tokens=True)).strip()

    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        text = self.text_of(outputs["generated"])
        return {"prediction": text, "findings_prediction": label_report(text), "cut_off": bool(outputs["cut"] == CUT)}

    def settings(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams} | self.collator.settings()

    def score(self, outputs: dict[str, list[np.ndarray]], studies: list[Study]) -> Scores:
        texts = [self.text_of(ids) for ids in outputs["generated"]]
        references = [self.collator.target(study) for study in studies]
        scores = self.score_reports(texts, references, studies)
        if "nll" in outputs:  # a stock trainer generates, and measures no loss on the references
            loss = float(np.sum(outputs["nll"]) / max(np.sum(outputs["tokens"]), 1))
            how = "cross-entropy in nats, mean over all tokens of the split"
            scores.add({"loss": loss}, facts.TRAINING, how, better=facts.LOWER, unit="nats")
        how = f"share of reports that did not end within {self.max_new_tokens} tokens"
        scores.add({"cut_off_rate": float(np.mean(outputs["cut"]))}, facts.TEXT, how, better=facts.LOWER)
        for number, grids in enumerate(outputs.get("maps", ())):
            if np.isfinite(grids).any() and studies[number].frontal:
                scores.predictions[number] |= self._shown(studies[number], texts[number], grids)
        if self.without_maps:
            scores.figures[WITHOUT_MAPS] = self.without_maps
        return scores

    def _shown(self, study: Study, text: str, grids: np.ndarray) -> dict[str, Any]:
        """The maps of one study for the pages."""
        assert study.frontal is not None
        size = open_radiograph(Path(self.collator.image_folder) / study.frontal.path).size
        processor = self.collator.processor.image_processor
        maps = {
            phrase: thumbnail_map(torch.from_numpy(grid), size, processor)
            for phrase, grid in zip(written_findings(text)[:SHOWN_FINDINGS], grids, strict=False)
        }
        return {"maps": maps, "map_image": study.images.index(study.frontal)}

    def score_reports(self, texts: list[str], references: list[str], studies: list[Study]) -> Scores:
        """Everything that needs no model: text metrics, findings, audit, baselines, clinical metrics."""
        shown = [self.saw_prior(study) for study in studies]
        clinical = (self.clinical_metrics, self.clinical_weights, self.judge)
        scores = score_reports(texts, references, studies, self.train_reports, shown, *clinical)
        for line in missing_lines(scores.figures):
            if line not in self._said:
                self._said.add(line)
                logger.warning(line)
        return scores

    def saw_prior(self, study: Study) -> bool:
        """Whether an earlier study of the patient was shown when the report on this one was written."""
        return False

    # -- under the stock Seq2SeqTrainer ------------------------------------------------------------------------------

    def collate_for_trainer(self, rows: list[Row]) -> dict[str, Tensor]:
        """The prompt-only batch for `Seq2SeqTrainer(predict_with_generate=True)`'s `data_collator`.

        `labels` (B, T) supervise the last prompt token alone: the trainer calls `compute_metrics` only where a batch
        has labels, and they tell it where the prompt ends. The `eval_loss` that the trainer makes of them is useless.
        """
        batch = dict(self.collator.prompts(rows))
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        labels[:, -1] = batch["input_ids"][:, -1]
        return batch | {"labels": labels}

    def outputs_of(self, eval_prediction: EvalPrediction) -> dict[str, list[np.ndarray]]:
        """`generated` ids without the prompt, and `cut`, of what `Seq2SeqTrainer(predict_with_generate=True)` wrote.

        Raises:
            ValueError: these are logits, as the plain `Trainer` or `predict_with_generate=False` gives them.
        """
        ids = eval_prediction.predictions
        ids = np.asarray(ids[0] if isinstance(ids, tuple) else ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                "reports are scored from what generate() writes: use Seq2SeqTrainer with predict_with_generate=True "
                "and data_collator=evaluation.collate_for_trainer; the plain Trainer gives logits of the reference"
            )
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)  # the trainer pads with -100
        starts = (np.asarray(eval_prediction.label_ids) != IGNORE_INDEX).argmax(1) + 1
        generated = [row[start : start + self.max_new_tokens] for row, start in zip(ids, starts, strict=True)]
        stops = [i for i in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id) if i is not None]
        cut = [np.array(STOPPED if np.isin(row, stops).any() else CUT) for row in generated]
        return {"generated": generated, "cut": cut}
