"""What `recipes/llava_mimic.py` is made of: conversations, model, trainer. Options are in `arguments.py`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import GenerationConfig, LlavaProcessor, PreTrainedTokenizerBase, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_medvlm.data.conversations import (
    ASSISTANT,
    HUMAN,
    IMAGE,
    ChatOptions,
    answer_of,
    modality_length,
    patients_known,
    turns_of,
    with_conversations,
)
from hf_medvlm.data.counting import Texts
from hf_medvlm.data.load import Check, Splits, drop_broken, load_splits, splits_of
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.sources.base import Rejected
from hf_medvlm.data.sources.conversation_files import read_conversation_file
from hf_medvlm.data.sources.vqa_rad import as_multi_turn
from hf_medvlm.data.splits import assign_splits
from hf_medvlm.data.study import Study
from hf_medvlm.families.chat.arguments import ChatModelArguments, ChatTrainingArguments, ConversationDataArguments
from hf_medvlm.families.chat.attention import word_attention
from hf_medvlm.families.chat.chat_template import set_chat_template
from hf_medvlm.families.chat.collator import ChatCollator
from hf_medvlm.families.chat.evaluation import ChatEvaluation
from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.published import assemble, is_llava, load_projector, pixels_folder
from hf_medvlm.families.chat.sampling import ModalityLengthSampler
from hf_medvlm.families.chat.templates import SYSTEM, encode_questions
from hf_medvlm.families.chat.tiny import make_processor, tiny_reporter, train_chat_tokenizer
from hf_medvlm.labels import IMAGE_TOKEN_INDEX
from hf_medvlm.models.loading import find_folder, load_tokenizer
from hf_medvlm.models.towers import tokens_before
from hf_medvlm.training.arguments import DataArguments
from hf_medvlm.training.deepspeed import unsharded
from hf_medvlm.training.legacy import say
from hf_medvlm.training.lora import quantise
from hf_medvlm.training.machines import check_once
from hf_medvlm.training.objective import TokenObjective
from hf_medvlm.training.parts import prepare_parts
from hf_medvlm.training.trainer import MedVLMTrainer
from hf_medvlm.training.words import learnable


def load_conversations(args: SimpleNamespace) -> Splits:
    """The conversations of `--data_path`, or of the studies of `--dataset`.

    Raises:
        ValueError: what `read_llava`, `read_vqa_rad` or `load_splits` refuse; an image that is not in the folder.
    """
    data: ConversationDataArguments = args.data
    check = check_once(args.training)
    if data.data_path is not None:
        return _read_conversations(data, check)
    splits = load_splits(
        **{field.name: getattr(data, field.name) for field in fields(DataArguments)},
        sections=data.sections,
        check=check,
        turn=args.training.main_process_first(local=False),
    )
    options = chat_options(data)
    return replace(
        splits, studies={name: with_conversations(studies, options) for name, studies in splits.studies.items()}
    )


def chat_options(data: ConversationDataArguments) -> ChatOptions:
    """How `--dataset`'s studies become conversations."""
    return ChatOptions(
        prompts=tuple(prompt.strip() for prompt in data.prompts.split("|")),
        sections=data.sections,
        indication=data.indication,
        views=data.views,
        prior=data.prior,
    )


def _read_conversations(data: ConversationDataArguments, check: Check) -> Splits:
    path = Path(str(data.data_path))
    folder = Path(data.image_folder or (path if path.is_dir() else path.parent))
    studies = read_conversation_file(path)
    missing = [
        f"sample {study.study_id!r}: {image.path}"
        for study in studies
        for image in study.images
        if not (folder / image.path).is_file()
    ]
    if missing:
        raise ValueError(f"{len(missing)} image(s) of {path} are not in {folder}: {'; '.join(missing[:5])}")
    rejected: list[Rejected] = []
    whole = drop_broken(studies, folder, rejected, check) if data.verify_images else studies
    complete = {study.study_id: study.images for study in studies}
    whole = [study for study in whole if study.images == complete[study.study_id]]
    has_test = any(study.split == "test" for study in whole)
    known = patients_known(whole)
    whole = assign_splits(whole, test=0.0 if has_test else 0.1)
    splits = splits_of(whole, folder, path.name, rejected, data.train_studies, data.eval_studies)
    return replace(splits, patients_known=known)


def load_reporter(args: SimpleNamespace, splits: Splits) -> tuple[Any, LlavaProcessor]:
    """Model and processor: tiny ones, a LLaVA of any layout, or one assembled around a language model.

    Raises:
        ValueError: a checkpoint that is neither, or whose weights do not fit; quantised weights under ZeRO-3.
    """
    options: ChatModelArguments = args.model
    tokenizer: PreTrainedTokenizerBase
    if options.bits < 16 and is_deepspeed_zero3_enabled():
        raise ValueError(f"--bits {options.bits}: ZeRO-3 cannot shard quantised weights; use ds_configs/zero2.json")
    set_seed(args.training.seed)  # new weights are the same in all processes, and in every run
    aspect = args.data.image_aspect_ratio
    if options.model_name_or_path is None:
        tokenizer = train_chat_tokenizer([SYSTEM, "USER: ASSISTANT:", *learnable(splits.train, _values)])
        with unsharded(args.training):
            model = tiny_reporter(tokenizer, options.image_size)
        pixels = None
    else:
        model = _load_weights(options, args.training)
        tower = None if options.vision_tower is None else find_folder(options.vision_tower)
        checkpoint = find_folder(options.model_name_or_path)
        pixels, tokenizer = pixels_folder(checkpoint, tower), load_tokenizer(checkpoint)
    vision = model.config.vision_config
    processor = make_processor(
        tokenizer,
        vision.image_size,
        vision.patch_size,
        aspect,
        model.config.vision_feature_select_strategy,
        pixels,
        tokens_before(vision),
    )
    tokenizer.model_max_length = args.training.model_max_length
    model.config.image_token_index = processor.image_token_id
    model.give_image_token_a_row()
    describe_use(model, processor, args)
    if options.pretrain_mm_mlp_adapter is not None:
        load_projector(model, options.pretrain_mm_mlp_adapter)
    limit = model.config.text_config.max_position_embeddings
    if args.training.model_max_length > limit:
        raise ValueError(
            f"--model_max_length {args.training.model_max_length}: the language model takes {limit} tokens"
        )
    if options.bits < 16 and not args.training.dry_run:
        quantise(model, model.model.language_model, options.bits, args.training.device)
    return prepare_parts(model, options, args.training.gradient_checkpointing), processor


def describe_use(model: LlavaReporter, processor: LlavaProcessor, args: SimpleNamespace) -> None:
    """What whoever opens the folder needs besides the weights: the chat template, the first question, how it writes."""
    tokenizer, question = processor.tokenizer, args.data.prompts.split("|")[0].strip()
    if not set_chat_template(processor, args.model.version, question):
        say(
            f"--version {args.model.version}: the chat template that is saved beside the model does not give the token "
            "ids it is trained on; write with this package, or encode the prompts yourself"
        )
    turns = [{"from": HUMAN, "value": f"{IMAGE}\n{question}"}, {"from": ASSISTANT, "value": ""}]
    asked = encode_questions(turns, tokenizer, args.model.version, images=1)
    image = processor.image_token_id
    model.config.image_seq_length = model.image_tokens
    model.config.prompt_ids = [image if token == IMAGE_TOKEN_INDEX else token for token in asked]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=args.model.max_new_tokens,
        num_beams=args.model.num_beams,
        do_sample=False,
    )


def _values(study: Study) -> list[str]:
    return [turn["value"] for turn in turns_of(study)]


def _load_weights(options: ChatModelArguments, training: Any) -> LlavaReporter:
    folder = find_folder(str(options.model_name_or_path))
    tower = None if options.vision_tower is None else find_folder(options.vision_tower)
    # DeepSpeed keeps its own float32 copy of what it trains, and adapters are float32 on a frozen base.
    in_half = training.bf16 and (training.deepspeed is not None or options.lora_rank > 0)
    dtype = torch.bfloat16 if in_half else torch.float32
    if is_llava(folder):
        shapes = training.dry_run and options.pretrain_mm_mlp_adapter is None
        return LlavaReporter.from_published(folder, vision_tower=tower, dtype=dtype, shapes_only=shapes)
    if tower is None:
        raise ValueError(f"{folder} is a language model without eyes; name a CLIP folder with --vision_tower")
    return assemble(LlavaReporter, folder, tower, options.mm_vision_select_layer, dtype)


class ChatTrainer(MedVLMTrainer):
    """`MedVLMTrainer` with LLaVA's sampler."""

    args: ChatTrainingArguments

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if next(model.parameters()).device.type != "meta":  # a dry run has shapes, no weights
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        by_length = self.args.train_sampling_strategy == "group_by_length"
        if not (by_length or self.args.group_by_modality_length):
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [modality_length(study) for study in rows.studies]
        if by_length:
            batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            return LengthGroupedSampler(batch, lengths=[abs(length) for length in lengths])
        chunks = self.args.world_size * self.args.gradient_accumulation_steps
        return ModalityLengthSampler(lengths, self.args.per_device_train_batch_size, chunks, self.args.seed)


def chat_trainer(model: Any, processor: LlavaProcessor, splits: Splits, args: SimpleNamespace) -> ChatTrainer:
    """Collators and evaluation around a chat model."""

    def collator(training: bool) -> ChatCollator:
        return ChatCollator(
            processor,
            splits.image_folder,
            template=args.model.version,
            max_length=args.training.model_max_length,
            options=chat_options(args.data),
            packing=training and args.training.packing,
            training=training and args.training.augment,
            seed=args.training.seed,
        )

    objective = TokenObjective()
    evaluation = ChatEvaluation(
        collator(training=False),
        processor.tokenizer,
        Texts(splits.train, answer_of),
        objective,
        max_new_tokens=args.model.max_new_tokens,
        num_beams=args.model.num_beams,
        look=word_attention,
        train_studies=splits.train,
        **args.model.clinical(),
    )
    train = splits.train
    if any(study.answer_type for study in train):
        train = as_multi_turn(train)
    return ChatTrainer(
        model=model,
        args=args.training,
        objective=objective,
        data_collator=collator(training=True),
        evaluation=evaluation,
        train_dataset=StudyRows(train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=processor,
    )
