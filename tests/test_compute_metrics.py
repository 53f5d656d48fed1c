"""Contract 14: `evaluation.compute_metrics` under the stock trainers gives the numbers of our own evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, Family, build
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.training.arguments import MedVLMArguments

NOT_MEASURED = {"gflops", "loss"}  # the stock trainer measures its own loss, with its own batches


def own_metrics(family: Family, rows: StudyRows, folder: Path) -> dict[str, float]:
    args = MedVLMArguments(str(folder / "own"), per_device_eval_batch_size=4, use_cpu=True, eval_strategy="no")
    trainer = family.trainer_class(
        model=family.model, args=args, data_collator=family.collator(False), evaluation=family.evaluation
    )
    return trainer.scores(rows).metrics


def stock_metrics(family: Family, rows: StudyRows, folder: Path) -> dict[str, float]:
    family.evaluation.studies = rows.studies
    options = {"output_dir": str(folder / "stock"), "per_device_eval_batch_size": 5, "use_cpu": True}
    writes = isinstance(family.evaluation, TextEvaluation)
    if writes:
        length = family.evaluation.max_new_tokens
        family.model.generation_config.max_new_tokens = length
        args, kind = Seq2SeqTrainingArguments(predict_with_generate=True, **options), Seq2SeqTrainer
    else:
        args, kind = TrainingArguments(**options), Trainer
    trainer = kind(
        model=family.model,
        args=args,
        data_collator=family.evaluation.collate_for_trainer,
        eval_dataset=rows,
        compute_metrics=family.evaluation.compute_metrics,
        processing_class=family.evaluation.tokenizer if writes else None,
    )
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stock_trainer_gives_our_own_numbers(name, splits, tmp_path):
    family = build(name, splits)
    rows = StudyRows(splits.validate[:11])  # 11: the last batch is a short one under either trainer
    ours, stock = own_metrics(family, rows, tmp_path), stock_metrics(family, rows, tmp_path)
    defined = {key for key, value in ours.items() if np.isfinite(value)} - NOT_MEASURED
    assert defined, "on these eleven studies the evaluation gives no metric that is a number"
    assert {key: stock.get(key) for key in defined} == pytest.approx({key: ours[key] for key in defined}, abs=1e-5)


def test_logits_and_other_studies_are_refused(splits):
    evaluation = build("blip", splits).evaluation
    evaluation.studies = splits.validate[:2]
    with pytest.raises(ValueError, match="predict_with_generate=True"):
        evaluation.compute_metrics(EvalPrediction(np.zeros((2, 3, 5), np.float32), np.zeros((2, 3), int)))
    with pytest.raises(ValueError, match="3 predictions for 2 studies"):
        evaluation.compute_metrics(EvalPrediction(np.zeros((3, 3), int), np.zeros((3, 3), int)))
