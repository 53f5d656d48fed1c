"""What `recipes/reward_chat.py` is made of: a chat model that TRL trains, and that everything else here looks after.

TRL's `GRPOTrainer` and `DPOTrainer` take the steps; data, rewards, evaluation, checkpoints, page and card are those of
the other recipes. This file imports TRL inside its functions: it is an extra, `pip install 'hf_medvlm[rl]'`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, ProcessorMixin, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import Row, StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Evaluation, without_nan
from hf_medvlm.families.chat.lazy_rows import lazy_rows
from hf_medvlm.families.chat.message_evaluation import MessageEvaluation
from hf_medvlm.families.chat.message_recipe import MessageTrainer, message_trainer
from hf_medvlm.families.chat.pairs import (
    Pair,
    SampledReports,
    answer,
    conversation_of,
    rank,
    read_pairs,
    write_pairs,
)
from hf_medvlm.families.chat.reward_arguments import RewardChatArguments
from hf_medvlm.families.chat.stock import ChatObjective, load_stock
from hf_medvlm.rewards.reward import Reward, make_reward
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.callbacks import Throughput
from hf_medvlm.training.checks import OK, Checks
from hf_medvlm.training.deepspeed import unsharded
from hf_medvlm.training.lora import is_adapted
from hf_medvlm.training.resuming import Resumable
from hf_medvlm.training.reward_scores import RewardScores, ScoresFirst

PAIRS_FILE = "pairs.jsonl"
HANDED_ON = (EarlyStoppingCallback, Throughput, ScoresFirst)
"""Callbacks of ours that watch TRL's steps; it has the others itself."""


class ChatRewardTrainer(RewardScores, MessageTrainer):
    """`MessageTrainer` whose steps TRL takes. It evaluates, saves and describes the model that TRL trains.

    Args:
        options: what is learnt from, and how. start: the folder of the model that training starts from.
        Everything else as `RewardScores` and `MessageTrainer`.
    """

    evaluation: MessageEvaluation
    objective: ChatObjective
    stepping: Any  # TRL's trainer, once there is one

    def __init__(self, *args: Any, options: RewardChatArguments, start: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options, self.start = options, start
        self.accelerator.unwrap_model(self.model).config._name_or_path = start  # where TRL finds it for its divergence

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """TRL's training of the model, from the start or from one of its checkpoints."""
        stepping = (grpo if self.options.method == "grpo" else dpo)(self, resume_from_checkpoint is not None)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, HANDED_ON):
                stepping.add_callback(callback)
        self.follow(stepping)
        result = stepping.train(resume_from_checkpoint=resume_from_checkpoint)
        self.follow(stepping)
        if is_adapted(self.model) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # DPO's copy of the start
        return result

    def follow(self, stepping: Any) -> None:
        """Evaluate and save what `stepping` trains, wrapped as it wraps it."""
        self.state, self.model_wrapped, self.deepspeed = stepping.state, stepping.model_wrapped, stepping.deepspeed
        self.accelerator = stepping.accelerator  # the one that knows the DeepSpeed engine

    def score_start(self, resumed: bool) -> None:
        """As `RewardScores`, of the model that TRL has put on its devices."""
        self.follow(self.stepping)
        super().score_start(resumed)

    def check_family(self, checks: Checks) -> None:
        """What the preflight says of chat models, and of the reward."""
        super().check_family(checks)
        self.check_reward(checks)
        options, samples = self.options, self.options.reward_samples
        if options.method == "grpo":
            what = f"{samples} of each study a step, at temperature {options.reward_temperature:g}; beside a "
            what += f"supervised step, {samples} times the forward and backward passes, and the writing besides"
        elif options.pairs:
            what = f"{len(read_pairs(options.pairs, self.train_dataset.studies))} pairs in {options.pairs}"
        else:
            what = f"the best and the worst of {samples} of each study, written once before training"
        checks.add(OK, "reports", what)

    def supervised_loss(self, model: Any, report_of: Tensor, tokens: Tensor) -> Tensor:
        """`--reward_supervised_weight` times the supervised loss of some studies' own reports.

        More of them than of sampled ones: Ouyang et al. 2022 (arXiv 2203.02155), PPO-ptx, mix in eight times as many.

        Args:
            report_of: places among the training studies, below 0 where none is to be learnt (see `reports_to_learn`);
                of each, `--reward_supervised_studies` in a row are.
            tokens: (), what the loss is a mean over.
        """
        places = report_of[report_of >= 0].tolist()
        beside, count = range(self.options.reward_supervised_studies), len(self.train_dataset)
        # every process runs the model equally often: on the first study where there is none
        rows = [self.train_dataset[(place + more) % count] for place in places or [0] for more in beside]
        batch = self._prepare_inputs(self.data_collator(rows))
        loss = self.objective(model, batch, {"tokens": tokens}).loss
        return loss * (self.options.reward_supervised_weight if places else 0.0)

    # -- what TRL asks for ---------------------------------------------------------------------------------------------

    def example(self, study: Study) -> dict[str, Any]:
        """`prompt` (messages up to the last answer) and `images`."""
        return {
            "prompt": conversation_of(self.evaluation, study),
            "images": self.data_collator.pictures(Row(self.evaluation.collator.talk(study))),
        }

    def pairs(self, resumed: bool) -> list[Pair]:
        """Those of `--pairs`; else the best and the worst of several reports of each study, kept for a resumed run.

        Raises:
            ValueError: all reports of every study are worth the same.
        """
        studies, options = self.train_dataset.studies, self.options
        kept = Path(str(self.args.output_dir)) / PAIRS_FILE
        if options.pairs or (resumed and kept.is_file()):
            return read_pairs(options.pairs or kept, studies)
        if self.is_deepspeed_enabled:
            raise ValueError("--method dpo writes no pairs under DeepSpeed; write them without it, then name --pairs")
        sampled = SampledReports(self.evaluation, options.reward_samples, options.reward_temperature, self.args.seed)
        with _evaluation_of(self, sampled):
            texts = sampled.texts(self.predict_rows(self.train_dataset))
        ranked = rank(texts, studies, self.reward)
        if not ranked:
            raise ValueError(
                "all reports that the model writes of a study are worth the same, so that there is no pair to learn "
                "from; raise --reward_samples or --reward_temperature, or choose another --reward"
            )
        if self.is_world_process_zero():
            write_pairs(ranked, kept)
            print(f"{len(ranked)} pairs of {len(studies)} studies, in {kept}", flush=True)
        self.accelerator.wait_for_everyone()
        return ranked


class _evaluation_of:
    """Inside, the trainer runs another evaluation."""

    def __init__(self, trainer: Any, evaluation: Evaluation) -> None:
        self.trainer, self.evaluation = trainer, evaluation

    def __enter__(self) -> None:
        self.trainer.evaluation, self.evaluation = self.evaluation, self.trainer.evaluation

    def __exit__(self, *error: Any) -> None:
        self.trainer.evaluation = self.evaluation


def reward_functions(trainer: ChatRewardTrainer, studies: Sequence[Study]) -> tuple[list[Callable], list[float]]:
    """Each term of the reward as TRL calls it, and its weight."""

    def function(name: str) -> Callable:
        alone = Reward({name: trainer.reward.terms[name]}, {name: 1.0})

        def score(completions: Sequence[Any], place: Sequence[int], log_metric: Callable, **others: Any) -> list[float]:
            texts = [text_of(completion) for completion in completions]
            if name == next(iter(trainer.reward.terms)):
                log_metric("distinct", len(set(zip(place, texts, strict=True))) / len(texts))
            return alone(texts, [studies[number] for number in place]).total.tolist()

        score.__name__ = name
        return score

    names = list(trainer.reward.terms)
    return [function(name) for name in names], [trainer.reward.weights[name] for name in names]


def reports_to_learn(examples: Sequence[Mapping[str, Any]], samples: int) -> Tensor:
    """(R,): the `place` of the study for the first of each `samples` texts, -1 for the others.

    TRL shuffles the texts of a step and cuts them into micro-batches; each study's own report is learnt once in it.
    """
    return torch.tensor([x["place"] if number % samples == 0 else -1 for number, x in enumerate(examples)])


def text_of(completion: Any) -> str:
    """The text of what TRL hands on: a list of one message, whose content is a text or blocks."""
    content = completion if isinstance(completion, str) else completion[0]["content"]
    if not isinstance(content, str):
        content = "".join(block.get("text", "") for block in content)
    return content.strip()


def grpo(trainer: ChatRewardTrainer, resumed: bool) -> Any:
    """TRL's `GRPOTrainer` around the trainer's model, data and reward."""
    from trl import GRPOConfig, GRPOTrainer

    options, studies = trainer.options, trainer.train_dataset.studies
    functions, weights = reward_functions(trainer, studies)
    samples = options.reward_samples
    settings = {
        "per_device_train_batch_size": trainer.args.per_device_train_batch_size * samples,
        "per_device_eval_batch_size": samples,
        "num_generations": samples,
        "max_completion_length": options.max_new_tokens,
        "temperature": options.reward_temperature,
        "beta": options.reward_kl,
        "epsilon": options.reward_clip,
        "reward_weights": weights,
        "loss_type": "dapo",  # token losses are a mean over the tokens sampled for a step
        "use_vllm": options.use_vllm,
        "trust_remote_code": False,
    }

    def rows(places: Sequence[int]) -> dict[str, list]:
        examples = [trainer.example(studies[place]) | {"place": place} for place in places]
        return {name: [example[name] for example in examples] for name in examples[0]}

    return _stepping(
        GRPOTrainer, GRPOConfig, trainer, settings, lazy_rows(len(studies), rows), {"reward_funcs": functions}
    )


def dpo(trainer: ChatRewardTrainer, resumed: bool) -> Any:
    """TRL's `DPOTrainer` around the trainer's model and pairs."""
    from trl import DPOConfig, DPOTrainer

    options, training = trainer.options, trainer.args
    pairs, studies = trainer.pairs(resumed), {study.study_id: study for study in trainer.train_dataset.studies}

    def rows(places: Sequence[int]) -> dict[str, list]:
        examples = [
            trainer.example(studies[pair.study_id]) | {"chosen": answer(pair.chosen), "rejected": answer(pair.rejected)}
            for pair in (pairs[place] for place in places)
        ]
        return {name: [example[name] for example in examples] for name in examples[0]}

    reference = None
    if not is_adapted(trainer.model):  # else TRL copies the adapter
        with unsharded(training):
            reference = load_stock(trainer.start, trainer.model.dtype)
    settings = {"beta": options.dpo_beta, "max_length": None, "trust_remote_code": False}
    return _stepping(DPOTrainer, DPOConfig, trainer, settings, lazy_rows(len(pairs), rows), {"ref_model": reference})


def _stepping(
    kind: type, config: type, trainer: ChatRewardTrainer, settings: dict[str, Any], dataset: Any, parts: dict[str, Any]
) -> Any:
    """TRL's trainer `kind`, with checkpoints and evaluation as `trainer` has them."""

    class Stepping(Resumable, kind):
        """TRL's, whose checkpoints can be resumed from, and which evaluates as the other recipes do."""

        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> dict[str, float]:
            start = time.perf_counter()
            trainer.follow(self)
            scores = trainer.scores(trainer.eval_dataset)
            values = without_nan(scores.metrics)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
            metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 3)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
            """TRL puts prompts of different lengths to the right, and asks the processor for token types in its way."""
            tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
            side, tokenizer.padding_side = tokenizer.padding_side, "left"
            try:
                texts = super()._generate_and_score_completions(inputs)
            finally:
                tokenizer.padding_side = side
            if trainer.options.reward_supervised_weight:
                texts["report_of"] = reports_to_learn(inputs, trainer.options.reward_samples).to(self.args.device)
            return texts

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            """TRL's, and with `--reward_supervised_weight` the loss of the studies' own reports."""
            report_of = inputs.get("report_of")
            loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
            if report_of is None:
                return loss
            parts, training = self.current_gradient_accumulation_steps, cast(Any, self.args)
            tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            tokens = tokens * parts / training.steps_per_generation  # as in TRL's own mean
            supervised = trainer.supervised_loss(model, report_of, tokens)
            noted = self.accelerator.gather(supervised.detach() * parts).mean()
            self._metrics["train"]["supervised"].append(noted.item())
            return loss + supervised

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None of TRL's: the run's own card is written at its end."""

    common = {field.name for field in fields(TrainingArguments) if field.init}
    given = {name: getattr(trainer.args, name) for name in common} | {"remove_unused_columns": False} | settings
    stepping = Stepping(
        model=trainer.model,
        args=config(**given),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(1)),
        processing_class=trainer.processing_class,
        **parts,
    )
    stepping._terms, stepping._terms_since = {}, 0
    trainer.stepping = stepping
    return stepping


def reward_trainer(model: Any, processor: ProcessorMixin, splits: Splits, args: SimpleNamespace) -> ChatRewardTrainer:
    """The trainer of a chat model on rewards; a tiny one is given its supervised start first.

    Raises:
        ValueError: options that cannot be, or what is not installed.
    """
    options: RewardChatArguments = args.model
    plain = message_trainer(model, processor, splits, args)
    evaluation = plain.evaluation
    assert isinstance(evaluation, MessageEvaluation)
    reports = list(evaluation.train_reports)
    start, resumed = options.model_name_or_path, args.training.resume_from_checkpoint
    if start is None:
        start = str(Path(resumed).parent if resumed else Path(args.training.output_dir)) + "/supervised"
        if not args.training.dry_run and not resumed:
            supervise(plain, args, start)
    return ChatRewardTrainer(
        model=model,
        args=args.training,
        objective=plain.objective,
        data_collator=plain.data_collator,
        evaluation=evaluation,
        train_dataset=plain.train_dataset,
        eval_dataset=plain.eval_dataset,
        processing_class=processor,
        reward=make_reward(str(options.reward), evaluation.collator.target, reports, options.clinical_weights),
        start_rows=[StudyRows(splits.studies[split]) for split in ("validate", "test")],
        options=options,
        start=start,
    )


SUPERVISED_RATE = 3e-3


def supervise(plain: MessageTrainer, args: SimpleNamespace, folder: str) -> None:
    """Teach the tiny model to write reports, for `--supervised_steps`, and keep it in `folder`."""
    training: MedVLMArguments = copy.copy(args.training)
    training.max_steps, training.learning_rate = args.model.supervised_steps, SUPERVISED_RATE
    training.eval_strategy, training.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    training.load_best_model_at_end = False
    training.per_device_train_batch_size *= 4
    print(f"{training.max_steps} supervised steps first: a reward needs a model that writes reports", flush=True)
    trainer = MessageTrainer(
        model=plain.model,
        args=training,
        objective=plain.objective,
        data_collator=plain.data_collator,
        evaluation=plain.evaluation,
        train_dataset=plain.train_dataset,
        processing_class=plain.processing_class,
    )
    trainer.train()
    if is_adapted(plain.model):
        return  # the adapter goes on learning, and without it the model is as random as before
    trainer.save_model(folder)
