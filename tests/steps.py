"""One optimizer step of a family on one global batch, however it is cut up: in process, or under a launcher.

    torchrun --nproc_per_node 2 tests/steps.py OUT [--deepspeed ds_configs/zero3.json] FAMILY...

writes OUT/FAMILY (the model after the step) and OUT/FAMILY.json (the logged loss and the evaluation's metrics).
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

from families import Family, build

from hf_medvlm.data.load import Splits, load_splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.run import leave_processes
from hf_medvlm.training.trainer import MedVLMTrainer

GLOBAL_BATCH = 8
# One step of plain SGD at rate 1, so that the weights show the gradient.
SGD_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": GLOBAL_BATCH,
    "per_device_eval_batch_size": 4,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


def make_trainer(family: Family, splits: Splits, folder: Path, **options: Any) -> MedVLMTrainer:
    """A trainer on the first eight studies; plain SGD at rate 1, so that the weights show the gradient."""
    return family.trainer_class(
        model=family.model,
        args=MedVLMArguments(output_dir=str(folder), **(SGD_STEP | options)),
        objective=family.objective,
        data_collator=family.collator(False),
        evaluation=family.evaluation,
        train_dataset=StudyRows(splits.train[:GLOBAL_BATCH]),
        eval_dataset=StudyRows(splits.test[:7]),
    )


def logged_losses(trainer: MedVLMTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("families", nargs="+")
    parser.add_argument("--deepspeed")
    options = parser.parse_args()
    splits = load_splits(synthetic_studies=60, synthetic_size=64)
    # All before the first TrainingArguments: those of one family would shard the next one while it is made.
    families = {name: build(name, splits) for name in options.families}
    gc.freeze()  # the Trainer starts each training with a whole garbage collection
    for name, family in families.items():
        folder = options.out / name
        trainer = make_trainer(
            family, splits, folder, per_device_train_batch_size=GLOBAL_BATCH // 2, deepspeed=options.deepspeed
        )
        trainer.train()
        trainer.save_model(str(folder))
        scores = trainer.scores(trainer.eval_dataset)
        if trainer.is_world_process_zero():
            record = {"losses": logged_losses(trainer), "metrics": scores.to_dict()["metrics"], "n": scores.n}
            (options.out / f"{name}.json").write_text(json.dumps(record))
    leave_processes()


if __name__ == "__main__":
    main()
