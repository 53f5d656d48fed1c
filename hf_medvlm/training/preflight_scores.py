"""What the splits say before training: the score that chooses the best checkpoint, and how many show each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_medvlm.data.load import Splits
from hf_medvlm.training.checks import OK, WARNING, Checks

if TYPE_CHECKING:
    from hf_medvlm.training.trainer import MedVLMTrainer

FEW_OF_A_CLASS = 5  # studies with, or without, a finding, below which its score is chance
SHOWN = 6


def check_headline(checks: Checks, trainer: MedVLMTrainer, splits: Splits) -> None:
    """Whether the validation split can define `--metric_for_best_model`; where it cannot, another score takes its place
    in `trainer.args`, or the last weights are kept. Either is said."""
    args, evaluation = trainer.args, trainer.evaluation
    asked = (args.metric_for_best_model or "").removeprefix("eval_")
    if evaluation is None or not asked or not splits.validate or trainer.train_dataset is None:
        return
    reason = evaluation.undefined(asked, splits.validate)
    if reason is None:
        checks.add(OK, "best by", f"{asked}, the {'larger' if args.greater_is_better else 'smaller'} the better")
        return
    problem = f"--metric_for_best_model {asked} is not defined on the validate split: {reason}"
    checks.add(WARNING, "best by", f"{problem}; {trainer.choose_another_headline(asked, splits.validate)}")


def check_classes(checks: Checks, trainer: MedVLMTrainer, splits: Splits) -> None:
    """How many studies of each scored split have a finding and how many do not, where they are few."""
    if trainer.evaluation is None or splits.name == "synthetic":
        return
    for split in ("validate", "test"):
        counts = trainer.evaluation.class_counts(splits.studies[split]) if splits.studies[split] else {}
        if not counts:
            continue
        both = {name: pair for name, pair in counts.items() if min(pair) > 0}
        few = {name: pair for name, pair in both.items() if min(pair) < FEW_OF_A_CLASS}
        if not both:
            way_out = "label them; prepare_data.py --labels text reads labels from English reports"
            problem = (
                f"no finding of the {split} split has studies with it and studies without it: scores by finding are"
            )
            checks.add(WARNING, "findings", f"{problem} left empty; {way_out}")
        elif few:
            named = [f"{name} {w} with and {without} without" for name, (w, without) in list(few.items())[:SHOWN]]
            more = f", and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
            problem = f"{split}: fewer than {FEW_OF_A_CLASS} studies of a side, so that a score says little"
            checks.add(WARNING, "findings", f"{problem}: {', '.join(named)}{more}")
