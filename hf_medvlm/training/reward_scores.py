"""What every trainer on rewards does around its steps: scores the start model first, and says what the reward pays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_medvlm.data.files import write_json
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores, without_nan
from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.metrics import facts
from hf_medvlm.metrics.text import baseline_texts
from hf_medvlm.rewards.reward import Reward
from hf_medvlm.rewards.trivial import SHOWN, judge
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks
from hf_medvlm.training.trainer import MedVLMTrainer

START_FILE = "start_results.json"
"""What the model scored before it was rewarded, in the folder of the run; a resumed run reads it."""
START = "supervised_start"
"""The baseline of that name in the results."""


class RewardScores(MedVLMTrainer):
    """A trainer whose scores have the reward among them, and those of the start model beside them.

    Args:
        reward: the worth of texts. start_rows: the splits that are scored before training too.
        Everything else as `MedVLMTrainer`; `evaluation` is a `TextEvaluation`.
    """

    evaluation: TextEvaluation

    def __init__(self, *args: Any, reward: Reward, start_rows: Sequence[StudyRows] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluation.METRICS = (*self.evaluation.METRICS, "reward")  # type: ignore[misc]
        self.reward, self.start_rows = reward, list(start_rows)
        self.started: dict[str, dict[str, float]] = {}
        self.add_callback(ScoresFirst(self))

    def scores(self, rows: StudyRows) -> Scores:
        """The evaluation's, with the reward of the written reports, and the scores of the start as a baseline."""
        scores = super().scores(rows)
        studies, texts = rows.studies, [entry["prediction"] for entry in scores.predictions]
        how = f"mean over studies of {self.reward.describe()}, of the reports that greedy or beam search writes"
        values = self.reward(texts, studies)
        scores.add({"reward": float(values.total.mean())}, facts.TEXT, how, unit="reward")
        for system, written in baseline_texts(texts, self.evaluation.train_reports).items():
            if system in scores.baselines:
                scores.baselines[system]["reward"] = float(self.reward(written, studies).total.mean())
        start = self.started.get(_key(studies))
        if start is not None:
            scores.baselines[START] = start
        return scores

    def score_start(self, resumed: bool) -> None:
        """Score the start model, or read what it scored from the folder of a resumed run."""
        file = Path(str(self.args.output_dir)) / START_FILE
        if resumed:
            if file.is_file():
                self.started = json.loads(file.read_text(encoding="utf-8"))
            return
        with torch.random.fork_rng(devices=[]):  # a resumed run does without this and must draw the same
            scores_of = {_key(rows.studies): self.scores(rows) for rows in self.start_rows if len(rows)}
        self.started = {key: without_nan(scores.metrics) for key, scores in scores_of.items()}
        if self.is_world_process_zero():
            write_json(file, self.started)
        for scores in scores_of.values():
            self._compare_with_baselines(scores)
        if scores_of:
            first = next(iter(self.started.values()))
            self.log({f"start_{name}": value for name, value in first.items() if value is not None})

    def _compare_with_baselines(self, scores: Scores) -> None:
        """Say where a text that sees no image is worth more than what the start model writes."""
        start = scores.metrics["reward"]
        for name, baseline in scores.baselines.items():
            if baseline.get("reward", start) > start and self.is_world_process_zero():
                print(
                    f"The reward pays the baseline {name} {baseline['reward']:.3f} and the start model {start:.3f}: "
                    "the model may end on that. Train it longer with supervision first, or choose another reward",
                    flush=True,
                )

    def check_reward(self, checks: Checks) -> None:
        """What the preflight says of the reward."""
        studies, evaluation = self.train_dataset.studies[:SHOWN], self.evaluation
        means, verdicts = judge(self.reward, studies, evaluation.collator.target, list(evaluation.train_reports))
        paid = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        checks.add(OK, "reward", f"{self.reward.describe()}; mean over {len(studies)} studies: {paid}")
        for verdict in verdicts:
            checks.add(STOP if verdict.stops else WARNING, "reward", verdict.text)


class ScoresFirst(TrainerCallback):
    """Scores the start model once the trainer has put it on its devices."""

    def __init__(self, trainer: RewardScores) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.score_start(resumed=state.global_step > 0)


def _key(studies: Sequence[Study]) -> str:
    """A name of a split by its studies, that tells no id."""
    return hashlib.sha256("\n".join(study.study_id for study in studies).encode()).hexdigest()[:16]
