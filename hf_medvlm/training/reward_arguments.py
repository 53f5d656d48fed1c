"""The options of learning from rewards."""

from __future__ import annotations

from dataclasses import dataclass

from hf_medvlm.training.arguments import option

REWARD_HELP = (
    "learn from what the model's own reports are worth, from a supervised checkpoint on: findings_f1, cider, bleu2, "
    "others of docs/rewards.md or module:function, by commas, with a weight where it is not 1: findings_f1,cider=0.5"
)


@dataclass
class RewardArguments:
    """What a report is worth, and how the model learns from it."""

    reward: str | None = option(None, REWARD_HELP)
    reward_samples: int = option(4, "with --reward: reports of each study that the model writes for a step")
    reward_baseline: str = option(
        "group", "with --reward: what a report is held against: group, the others of its study; greedy, the greedy one"
    )
    reward_temperature: float = option(1.0, "with --reward: temperature at which the reports are sampled")
    reward_kl: float = option(0.0, "with --reward: weight of the divergence from the start model; 0 does without it")
    reward_supervised_weight: float = option(
        0.0,
        "with --reward: weight of each study's own report, learnt beside the sampled reports as without rewards; 0 "
        "does without it",
    )
    reward_clip: float = option(0.2, "with --reward: how far a token's probability may move from where it was sampled")

    @property
    def greedy(self) -> bool:
        """Whether the greedy report is the baseline."""
        return self.reward_baseline == "greedy"

    def check_reward(self) -> None:
        """Refuse options that cannot be.

        Raises:
            ValueError: with the option and what it may be.
        """
        if self.reward_baseline not in ("group", "greedy"):
            raise ValueError(f"--reward_baseline {self.reward_baseline}: choose group or greedy")
        least = 1 if self.greedy else 2
        if self.reward_samples < least:
            raise ValueError(
                f"--reward_samples {self.reward_samples}: a {self.reward_baseline} baseline needs {least} or more"
            )
        if self.reward_temperature <= 0:
            raise ValueError(f"--reward_temperature {self.reward_temperature}: it must be above 0")
        if self.reward_kl < 0 or self.reward_supervised_weight < 0 or not 0 < self.reward_clip:
            raise ValueError("--reward_kl and --reward_supervised_weight must be 0 or more, and --reward_clip above 0")
