"""One optimizer step on rewards, of one global batch, however it is cut up: in process, or under a launcher.

torchrun --nproc_per_node 2 tests/training/reward_steps.py OUT [--deepspeed ds_configs/zero3.json]
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from families import SIZE, build
from steps import GLOBAL_BATCH, SGD_STEP, logged_losses

from hf_medvlm.data.load import Splits, load_splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.families.captioners.recipe import CaptioningArguments
from hf_medvlm.rewards.reward import make_reward
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.reward_trainer import RewardTrainer
from hf_medvlm.training.run import leave_processes


def make_reward_trainer(
    splits: Splits, folder: Path, reward: Any = "findings_f1,bleu2,length", options: Any = None, **training: Any
) -> RewardTrainer:
    """A trainer of the tiny BLIP of tests/families.py on the first studies, by SGD: the weights show the gradient."""
    family = build("blip", splits)
    options = options or CaptioningArguments(reward_kl=0.1)
    reports = [study.text() for study in splits.train]
    if isinstance(reward, str):
        reward = make_reward(reward, family.evaluation.collator.target, reports)
    reference = None
    if options.reward_kl:
        reference = copy.deepcopy(family.model)
        with_noise = next(reference.text_decoder.parameters())
        with_noise.data.mul_(1.02)  # or there would be no distance in the first step
    return RewardTrainer(
        model=family.model,
        args=MedVLMArguments(output_dir=str(folder), **(SGD_STEP | training)),
        data_collator=family.collator(False),
        evaluation=family.evaluation,
        reward=reward,
        options=options,
        reference=reference,
        train_dataset=StudyRows(splits.train[:GLOBAL_BATCH]),
        eval_dataset=StudyRows(splits.test[:7]),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--deepspeed")
    options = parser.parse_args()
    assert SIZE == 32
    splits = load_splits(synthetic_studies=60, synthetic_size=64)
    size = {"per_device_train_batch_size": GLOBAL_BATCH // 2}
    trainer = make_reward_trainer(splits, options.out, deepspeed=options.deepspeed, **size)
    trainer.train()
    trainer.save_model(str(options.out))
    if trainer.is_world_process_zero():
        logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
        (options.out / "found.json").write_text(json.dumps({"losses": logged_losses(trainer), "logged": logged}))
    leave_processes()


if __name__ == "__main__":
    main()
