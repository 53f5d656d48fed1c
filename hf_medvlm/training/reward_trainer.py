"""`RewardTrainer`: `MedVLMTrainer` for a model that writes and learns from what its own reports are worth.

Before each optimizer step the model writes several reports of every study of the step; those that are worth more than
the others of their study become likelier. Everything else is the trainer's: accumulation, processes, ZeRO, resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_medvlm.data.files import write_json
from hf_medvlm.training.checks import OK, Checks
from hf_medvlm.training.policy import PolicyObjective, group_advantages
from hf_medvlm.training.reward_arguments import RewardArguments
from hf_medvlm.training.reward_scores import RewardScores
from hf_medvlm.training.rollouts import RolloutCollator, draw_numbers, join_reports, sample


class RewardTrainer(RewardScores):
    """Trains a captioner on rewards.

    Args:
        options: how many texts, at what temperature, against which baseline.
        reference: the start model, frozen, whole on this device; needed with `options.reward_kl`.
        Everything else as `RewardScores`; the collator writes the prompts.
    """

    objective: PolicyObjective

    def __init__(
        self,
        *args: Any,
        options: RewardArguments,
        reference: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        weight, collator = options.reward_supervised_weight, kwargs["data_collator"]
        kwargs["data_collator"] = RolloutCollator(collator.prompts, collator if weight else None)
        kwargs["objective"] = PolicyObjective(
            options.reward_temperature, options.reward_kl, options.reward_clip, supervised_weight=weight
        )
        super().__init__(*args, **kwargs)
        self.options, self.reference = options, reference
        if reference is not None:
            reference.eval().requires_grad_(False).to(self.args.device)
        self._sums: dict[str, Tensor] = {}

    # -- the texts of a step -------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """The micro-batches of one optimizer step, with the texts that the model has written of them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        written = [self.write(batch) for batch in batches]
        return written, self.denominators(written, device) or None

    @torch.no_grad()
    def write(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What `PolicyObjective` takes, of a batch of `RolloutCollator`; notes what the texts are worth."""
        options, evaluation = self.options, self.evaluation
        prompts = self._prepare_inputs(batch)
        rows, reports = prompts.pop("rows"), prompts.pop("reports", None)
        model, samples = self.evaluation_model(), options.reward_samples
        numbers = draw_numbers(rows, samples, evaluation.max_new_tokens, self.args.seed, self.state.global_step)
        with self.accelerator.autocast():
            texts, generated = sample(
                model, prompts, numbers.to(self.args.device), options.reward_temperature, evaluation.stop_ids(model)
            )
            greedy = evaluation.predict_images(model, {"prompts": prompts}) if options.greedy else None
        words = [evaluation.text_of(row) for row in generated.cpu().numpy()]
        studies = [row.study for row in rows]
        values = self.reward(words, [study for study in studies for _ in range(samples)])
        baseline = None
        if greedy is not None:
            best = [evaluation.text_of(row) for row in greedy["generated"].cpu().numpy()]
            baseline = torch.from_numpy(self.reward(best, studies).total)
        advantages = group_advantages(torch.from_numpy(values.total).view(-1, samples), baseline)
        texts["advantages"] = advantages.flatten().float().to(self.args.device)
        if reports is not None:
            texts = join_reports(texts, reports)
        shared = {name: value for name, value in prompts.items() if name not in ("input_ids", "attention_mask")}
        if self.reference is not None:
            with self.accelerator.autocast():
                texts["reference_log_probs"] = self.objective.log_probs(self.reference, shared | texts)[0]
        distinct = [len(set(words[i : i + samples])) / samples for i in range(0, len(words), samples)]
        self.note("reward", values.total, spread=True)
        for name, term in values.terms.items():
            self.note(f"reward/{name}", term, spread=True)
        self.note("length", [len(text.split()) for text in words])
        self.note("distinct", distinct)
        self.note("tied", (values.total.reshape(-1, samples).std(1) < 1e-9).astype(float))
        return shared | texts

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """The trainer's, which notes the divergence from the start model and the share of clipped ratios."""
        processes = self.accelerator.num_processes
        result = self.objective(model, inputs, num_items_in_batch)
        if len(result.loss_terms) > 1:  # a single term is the loss itself
            self.note_terms(result.loss_terms, processes)
        tokens = result.per_study["tokens"].sum().item()
        for name in ("clipped", "kl"):
            if name in result.per_study:
                self.note(name, [result.per_study[name].sum().item()], count=tokens)
        loss = result.loss * processes
        return (loss, result.outputs) if return_outputs else loss

    # -- what is logged ------------------------------------------------------------------------------------------------

    def note(self, name: str, values: Any, spread: bool = False, count: float | None = None) -> None:
        """Keep the sums of `values` until the next log, where their mean and, asked for, their deviation appear."""
        values = np.asarray(values, dtype=float)
        sums = torch.tensor([values.sum(), (values**2).sum(), len(values) if count is None else count, float(spread)])
        self._sums[name] = self._sums.get(name, torch.zeros(4)) + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was noted since the last log, over all processes."""
        if "loss" in logs and self._sums:
            for name, sums in self._sums.items():
                total, squares, count, spread = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
                logs[name] = total / max(count, 1)
                if spread:
                    logs[f"{name}_std"] = max(squares / max(count, 1) - logs[name] ** 2, 0.0) ** 0.5
            self._sums = {}
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """As `Resumable`, and with it what was noted since the last log."""
        super()._save_rng_state(output_dir)
        noted = {name: sums.tolist() for name, sums in self._sums.items()}
        write_json(Path(output_dir) / f"noted_{self.args.process_index}.json", noted)

    def _restore_sums(self, path: Path) -> None:
        super()._restore_sums(path)
        noted = path.with_name(f"noted_{self.args.process_index}.json")
        if noted.is_file():
            self._sums = {name: torch.tensor(sums) for name, sums in json.loads(noted.read_text()).items()}

    # -- the preflight -------------------------------------------------------------------------------------------------

    def check_family(self, checks: Checks) -> None:
        """What the preflight says of the reward and of a step's cost."""
        self.check_reward(checks)
        options = self.options
        against = "the greedy report" if options.greedy else "one another"
        checks.add(
            OK,
            "reports",
            f"{options.reward_samples} of each study a step, at temperature {options.reward_temperature:g}, held "
            f"against {against}; beside a supervised step, {options.reward_samples} times the forward and backward "
            "passes, and the writing besides",
        )
