"""What `recipes/finetune_chat.py` is made of: any chat model with its processor, and a trainer around them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_medvlm.data.conversations import answer_of, turns_of
from hf_medvlm.data.counting import Texts
from hf_medvlm.data.files import load_json
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.sources.vqa_rad import as_multi_turn
from hf_medvlm.data.study import Study
from hf_medvlm.evaluation.base import Scores
from hf_medvlm.families.chat.attention import stock_word_attention
from hf_medvlm.families.chat.message_arguments import MessageModelArguments
from hf_medvlm.families.chat.message_collator import MessageCollator
from hf_medvlm.families.chat.message_evaluation import MessageEvaluation
from hf_medvlm.families.chat.message_preflight import check_messages
from hf_medvlm.families.chat.packed_rows import ROTARY, check_packable
from hf_medvlm.families.chat.processors import load_processor, stop_ids, writes_date
from hf_medvlm.families.chat.recipe import ChatTrainer, chat_options
from hf_medvlm.families.chat.rendering import chat_template_of, end_of_turn
from hf_medvlm.families.chat.stock import ChatObjective, load_stock
from hf_medvlm.families.chat.tiny_qwen import tiny_qwen, tiny_qwen_processor, train_byte_tokenizer
from hf_medvlm.models.towers import inside_peft
from hf_medvlm.training.checks import Checks
from hf_medvlm.training.deepspeed import unsharded
from hf_medvlm.training.lora import quantise
from hf_medvlm.training.parts import parts_of, prepare_parts
from hf_medvlm.training.words import learnable

log = logging.getLogger(__name__)


def load_chat_model(args: SimpleNamespace, splits: Splits) -> tuple[Any, ProcessorMixin]:
    """Model and processor: those of `--model_name_or_path`, or tiny ones.

    Raises:
        ValueError: no chat model, weights that do not fit, quantised weights under ZeRO-3, too long sequences.
    """
    options: MessageModelArguments = args.model
    training = args.training
    if options.bits < 16 and is_deepspeed_zero3_enabled():
        raise ValueError(f"--bits {options.bits}: ZeRO-3 cannot shard quantised weights; use ds_configs/zero2.json")
    set_seed(training.seed)  # new weights are the same in all processes, and in every run
    if options.model_name_or_path is None:
        tokenizer = train_byte_tokenizer(
            learnable(splits.train, lambda study: [turn["value"] for turn in turns_of(study)])
        )
        processor = tiny_qwen_processor(tokenizer, options.image_size)
        with unsharded(training):
            model: PreTrainedModel = tiny_qwen(tokenizer)
    else:
        processor = load_processor(options.model_name_or_path)
        chat_template_of(processor)  # refuses a model without one before gigabytes are read
        # DeepSpeed keeps its own float32 copy of what it trains, and adapters are float32 on a frozen base.
        in_half = training.bf16 and (training.deepspeed is not None or options.lora_rank > 0)
        model = load_stock(options.model_name_or_path, torch.bfloat16 if in_half else torch.float32, training.dry_run)
    _keep_date(processor, training)
    _agree_on_stops(model, processor)
    check_length(model, training.model_max_length)
    if options.bits < 16 and not training.dry_run:
        quantise(model, model.get_submodule(parts_of(model).decoder), options.bits, training.device)
    return prepare_parts(model, options, training.gradient_checkpointing), processor


def _keep_date(processor: Any, training: Any) -> None:
    """A resumed run writes the date that it began with; its checkpoints hold it beside the processor."""
    asked = training.resume_from_checkpoint
    if not asked or not writes_date(chat_template_of(processor)):
        return
    file = Path(asked) / "processor_config.json"
    kept = load_json(file, dict).get("template_date") if file.is_file() else None
    if kept:
        processor.template_date = datetime.fromisoformat(kept)


def _agree_on_stops(model: PreTrainedModel, processor: Any) -> None:
    """The generation config's stop ids stay; the control token that ends a turn is added where it is none of them."""
    config = model.generation_config
    stops = list(stop_ids(processor, config))
    ends = end_of_turn(processor)
    if ends is not None and ends not in stops:
        name = processor.tokenizer.convert_ids_to_tokens(ends)
        log.warning("the template ends a turn with %r, which the generation config does not stop at; it is added", name)
        stops.append(ends)
    config.eos_token_id = stops
    processor.stop_token_ids = tuple(stops)
    if config.pad_token_id is None:
        config.pad_token_id = processor.tokenizer.pad_token_id


def check_length(model: PreTrainedModel, length: int) -> None:
    """Raise `ValueError` where the language model takes fewer tokens than `length`."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ValueError(f"--model_max_length {length}: the language model takes {limit} tokens")


class MessageTrainer(ChatTrainer):
    """`ChatTrainer` for any chat model of transformers."""

    def check_family(self, checks: Checks) -> None:
        """What the preflight says of chat models."""
        model = self.accelerator.unwrap_model(self.model)
        studies = self.train_dataset.studies
        evaluation: Any = self.evaluation
        check_messages(checks, model, evaluation.collator, studies, show=self.args.dry_run)


def message_trainer(model: Any, processor: ProcessorMixin, splits: Splits, args: SimpleNamespace) -> MessageTrainer:
    """Collators, objective and evaluation around a chat model.

    Raises:
        ValueError: `--packing` for a family whose samples would see one another.
    """
    stock = inside_peft(model)
    kind = stock.config.model_type
    if args.training.packing:
        check_packable(kind)

    def collator(training: bool) -> MessageCollator:
        return MessageCollator(
            processor,
            splits.image_folder,
            max_length=args.training.model_max_length,
            options=chat_options(args.data),
            system_prompt=args.model.system_prompt,
            rope_index=stock.model.get_rope_index if kind in ROTARY else None,
            packing=training and args.training.packing,
            in_step=kind != "mllama" and (training or is_deepspeed_zero3_enabled()),
            training=training and args.training.augment,
            seed=args.training.seed,
        )

    objective = ChatObjective()
    evaluation = MessageEvaluation(
        collator(training=False),
        processor.tokenizer,
        Texts(splits.train, answer_of),
        objective,
        max_new_tokens=args.model.max_new_tokens,
        num_beams=args.model.num_beams,
        look=stock_word_attention,
        train_studies=splits.train,
        **args.model.clinical(),
    )
    return MessageTrainer(
        model=model,
        args=args.training,
        objective=objective,
        data_collator=collator(training=True),
        evaluation=evaluation,
        train_dataset=StudyRows(_joined(splits.train)),
        eval_dataset=StudyRows(splits.validate),
        processing_class=processor,
    )


def score_other_images(trainer: MessageTrainer, splits: Splits, results: dict[str, Scores]) -> float | None:
    """Score the test split once more with each study's images taken from another, and print both.

    A model that writes from the text alone scores the same. The second score becomes the baseline `other_images`. None
    where there is no test split, or no two studies with equally many images.
    """
    if "test" not in results:
        return None
    groups: dict[int, list[int]] = {}
    studies = splits.studies["test"]
    for place, study in enumerate(studies):
        groups.setdefault(len(study.images), []).append(place)
    swapped = list(studies)
    for places in groups.values():
        half = len(places) // 2
        for place, other in zip(places, places[half:] + places[:half], strict=True):
            swapped[place] = replace(studies[place], images=studies[other].images, boxes=())
    if all(new.images == old.images for new, old in zip(swapped, studies, strict=True)):
        return None
    scores = trainer.scores(StudyRows(swapped))
    name = "findings_f1_micro"
    with_theirs, with_others = results["test"].metrics[name], scores.metrics[name]
    if trainer.is_world_process_zero():
        shown = f"{with_theirs:.3f}, with other studies' images {with_others:.3f}"
        print(f"findings F1 on the test split: {shown}", flush=True)
    results["test"].baselines["other_images"] = {name: with_others}
    return with_others


def _joined(studies: Sequence[Study]) -> Sequence[Study]:
    return as_multi_turn(studies) if any(study.answer_type for study in studies) else studies
