"""Options of `recipes/reward_chat.py`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from hf_medvlm.families.chat import message_arguments
from hf_medvlm.families.chat.message_arguments import MessageModelArguments
from hf_medvlm.training.arguments import option
from hf_medvlm.training.reward_arguments import REWARD_HELP, RewardArguments

DEFAULTS = {"metric_for_best_model": "reward", "greater_is_better": True, "learning_rate": 1e-6}

TINY = message_arguments.TINY | {
    "synthetic_studies": 2000,
    "eval_studies": 100,
    "max_steps": 60,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "dataloader_num_workers": 0,
    "other_images": False,
}

METHODS = ("grpo", "dpo")


@dataclass
class RewardChatArguments(MessageModelArguments, RewardArguments):
    """The chat model, what its reports are worth, and how it learns from that."""

    method: str = option(
        "grpo", "grpo: from several reports of each study, scored at every step; dpo: from pairs, a better and a worse"
    )
    reward: str | None = option("findings_f1,cider", REWARD_HELP)
    pairs: str | None = option(
        None,
        "dpo: JSONL of study_id, chosen and rejected; by default the best and the worst of --reward_samples reports of "
        "each study, kept in pairs.jsonl",
    )
    dpo_beta: float = option(0.1, "dpo: how firmly the model is held to its start; higher moves it less")
    reward_supervised_studies: int = option(
        1,
        "with --reward_supervised_weight: own reports learnt for each rewarded study: 1, its own; N, also those of the "
        "next N - 1 training studies",
    )
    supervised_steps: int = option(200, "without --model_name_or_path: steps of supervision before the rewards")
    use_vllm: bool = option(False, "grpo: let vLLM write the reports; it has to be installed")

    def check(self) -> None:
        """Refuse options that cannot be, and what is not installed.

        Raises:
            ValueError: with the option and the way out.
        """
        if self.method not in METHODS:
            raise ValueError(f"--method {self.method}: choose {' or '.join(METHODS)}")
        if self.greedy:
            raise ValueError("--reward_baseline greedy: TRL holds reports against one another; leave the option out")
        if self.reward_supervised_weight and self.method != "grpo":
            raise ValueError("--reward_supervised_weight is for --method grpo; dpo learns from pairs alone")
        if self.reward_supervised_studies < 1:
            raise ValueError(f"--reward_supervised_studies {self.reward_supervised_studies}: it must be 1 or more")
        self.check_reward()
        if self.pairs is not None and self.method != "dpo":
            raise ValueError(f"--pairs is for --method dpo; {self.method} writes its own reports")
        if importlib.util.find_spec("trl") is None:
            raise ValueError("TRL is not installed: pip install 'hf_medvlm[rl]', with Python 3.11 or later")
        if self.use_vllm and self.method != "grpo":
            raise ValueError("--use_vllm is for --method grpo")
        if self.use_vllm and importlib.util.find_spec("vllm") is None:
            raise ValueError("--use_vllm: vLLM is not installed; install it beside TRL, or leave the option out")
