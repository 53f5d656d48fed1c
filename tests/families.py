"""The families as the contract tests see them: a tiny model, its collator, its evaluation. One function a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_medvlm.data.load import Splits
from hf_medvlm.evaluation.base import Evaluation
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training.objective import (
    ContrastiveObjective,
    FindingsObjective,
    Objective,
    TokenObjective,
)
from hf_medvlm.training.parts import PARTS
from hf_medvlm.training.trainer import MedVLMTrainer

SIZE = 32


@dataclass
class Family:
    """What the contract needs of a family.

    `collator(training)` gives a collator; `signal(model, batch)` is a tensor (B, ...) that depends on the study alone,
    not on its neighbours or its padding. `parts` are the parts that the model has, in the order of `PARTS`; () where
    the options of its recipe are no `PartArguments`, so that there is no `--train` and no LoRA.
    """

    model: Any
    objective: Objective
    collator: Callable[[bool], Any]
    evaluation: Evaluation
    signal: Callable[[Any, dict], Tensor]
    trainer_class: type[MedVLMTrainer] = MedVLMTrainer
    parts: tuple[str, ...] = PARTS


def captioner(model_class: type, splits: Splits) -> Family:
    from hf_medvlm.evaluation.text import TextEvaluation
    from hf_medvlm.families.captioners.collator import CaptionCollator

    tokenizer = train_tokenizer([study.text() for study in splits.train], vocab_size=300)
    processor = model_class.tiny_processor(tokenizer, SIZE)
    model = model_class.tiny(tokenizer, SIZE)

    def collator(training: bool) -> CaptionCollator:
        return CaptionCollator(
            processor, splits.image_folder, model.first_token(model.config), max_length=96, training=training
        )

    objective, reports = TokenObjective(label_smoothing=model.label_smoothing), [study.text() for study in splits.train]
    evaluation = TextEvaluation(collator(False), tokenizer, reports, objective, max_new_tokens=12)
    return Family(model, objective, collator, evaluation, signal=lambda *given: objective(*given).per_study["nll"])


def blip(splits: Splits) -> Family:
    from hf_medvlm.families.captioners.model import BlipCaptioner

    # no connector: its decoder attends to the image itself
    return replace(captioner(BlipCaptioner, splits), parts=("vision", "language"))


def git(splits: Splits) -> Family:
    from hf_medvlm.families.captioners.model import GitCaptioner

    return captioner(GitCaptioner, splits)


def dual_encoder(splits: Splits, variant: str = "") -> Family:
    from hf_medvlm.collators.pairs import PairCollator
    from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
    from hf_medvlm.families.dual_encoder.model import DualEncoderModel
    from hf_medvlm.families.dual_encoder.processor import build_processor
    from hf_medvlm.families.patch_ib.config import variant_options
    from hf_medvlm.families.patch_ib.model import PatchIBModel
    from hf_medvlm.training.contrastive import ContrastiveTrainer

    tokenizer = train_tokenizer([study.text() for study in splits.train], vocab_size=300)
    processor = build_processor(tokenizer, SIZE)
    if variant:
        model = PatchIBModel.tiny(tokenizer, SIZE, patch_size=8, **variant_options(variant, depth=4))
    else:
        model = DualEncoderModel.tiny(tokenizer, SIZE, patch_size=8)

    def collator(training: bool) -> PairCollator:
        return PairCollator(processor, splits.image_folder, max_length=96, training=training)

    evaluation = RetrievalEvaluation(collator(False), model)
    objective = ContrastiveObjective()
    return Family(model, objective, collator, evaluation, lambda m, batch: m(**batch).text_embeds, ContrastiveTrainer)


def patch_ib(splits: Splits) -> Family:
    return dual_encoder(splits, variant="G")


def llava(splits: Splits) -> Family:
    from hf_medvlm.data.conversations import PROMPTS, ChatOptions
    from hf_medvlm.families.chat.collator import ChatCollator
    from hf_medvlm.families.chat.evaluation import ChatEvaluation
    from hf_medvlm.families.chat.templates import SYSTEM
    from hf_medvlm.families.chat.tiny import make_processor, tiny_reporter, train_chat_tokenizer

    reports = [study.text() for study in splits.train]
    tokenizer = train_chat_tokenizer([SYSTEM, *reports], vocab_size=600)
    processor = make_processor(tokenizer, SIZE, patch_size=8)

    def collator(training: bool) -> ChatCollator:
        options = ChatOptions(prompts=PROMPTS[:1])  # or the question would tell the studies apart
        return ChatCollator(processor, splits.image_folder, options=options, training=training)

    objective = TokenObjective()
    evaluation = ChatEvaluation(collator(False), tokenizer, reports, objective, max_new_tokens=12)
    model = tiny_reporter(tokenizer, SIZE, patch_size=8)
    return Family(model, objective, collator, evaluation, signal=lambda *given: objective(*given).per_study["nll"])


def any_chat(splits: Splits, model: Any, processor: Any) -> Family:
    from hf_medvlm.data.conversations import PROMPTS, ChatOptions
    from hf_medvlm.families.chat.message_collator import MessageCollator
    from hf_medvlm.families.chat.message_evaluation import MessageEvaluation
    from hf_medvlm.families.chat.stock import ChatObjective
    from hf_medvlm.training.parts import PARTS, parts_of, set_trainable

    set_trainable(model, parts_of(model), PARTS)

    def collator(training: bool) -> MessageCollator:
        options = ChatOptions(prompts=PROMPTS[:1])  # or the question would tell the studies apart
        return MessageCollator(processor, splits.image_folder, options=options, training=training, in_step=training)

    objective, reports = ChatObjective(), [study.text() for study in splits.train]
    evaluation = MessageEvaluation(collator(False), processor.tokenizer, reports, objective, max_new_tokens=12)
    return Family(model, objective, collator, evaluation, signal=lambda *given: objective(*given).per_study["nll"])


def qwen2_5_vl(splits: Splits) -> Family:
    from hf_medvlm.families.chat.tiny_qwen import tiny_qwen, tiny_qwen_processor, train_byte_tokenizer

    tokenizer = train_byte_tokenizer([study.text() for study in splits.train], vocab_size=600)
    return any_chat(splits, tiny_qwen(tokenizer), tiny_qwen_processor(tokenizer, 48))


def smolvlm(splits: Splits) -> Family:
    import sys
    import tempfile
    from pathlib import Path

    from hf_medvlm.families.chat.processors import load_processor
    from hf_medvlm.families.chat.stock import load_stock

    sys.path.insert(0, str(Path(__file__).parent / "families" / "chat"))
    import chat_folders

    with tempfile.TemporaryDirectory() as folder:
        made = chat_folders.smolvlm(Path(folder))
        return any_chat(splits, load_stock(made, torch.float32), load_processor(made))


def biovil_t(splits: Splits) -> Family:
    from hf_medvlm.families.biovil_t.collator import PriorCollator, find_priors
    from hf_medvlm.families.biovil_t.evaluation import BioViLTEvaluation
    from hf_medvlm.families.biovil_t.model import BioViLTModel
    from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor, BioViLTProcessor
    from hf_medvlm.training.contrastive import ContrastiveTrainer

    tokenizer = train_tokenizer([study.text() for study in splits.train], vocab_size=300)
    processor = BioViLTProcessor(BioViLTImageProcessor(SIZE, SIZE), tokenizer)
    names = ("Pleural Effusion", "Lung Opacity", "Cardiomegaly", "Consolidation")
    # light weights: four losses together would take too long a step at the rate of 1 of tests/steps.py
    light = dict.fromkeys(("global_weight", "local_weight", "progression_weight", "findings_weight"), 0.02)
    model = BioViLTModel.tiny(tokenizer, progression_findings=names, findings=names, **light)
    priors = find_priors(study for studies in splits.studies.values() for study in studies)

    def collator(training: bool) -> PriorCollator:
        labels = {"progression_findings": names, "findings": names}
        return PriorCollator(processor, splits.image_folder, max_length=96, training=training, priors=priors, **labels)

    evaluation = BioViLTEvaluation(collator(False), model, task="progression", train_studies=splits.train)

    def signal(model: Any, batch: dict) -> Tensor:
        output = model(**batch)
        return torch.cat((output.image_embeds, output.text_embeds), dim=1)

    return Family(model, ContrastiveObjective(), collator, evaluation, signal, ContrastiveTrainer)


def medklip(splits: Splits) -> Family:
    from transformers import ViTImageProcessorPil

    from hf_medvlm.families.medklip.collator import FindingsCollator
    from hf_medvlm.families.medklip.descriptions import describe, hashed_embeddings, position_prompts
    from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation
    from hf_medvlm.families.medklip.model import MedKlipModel
    from hf_medvlm.labels import MEDKLIP_POSITIONS

    names = ("effusion", "cardiomegaly", "pneumothorax", "fracture")
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    model = MedKlipModel.tiny(dropout=0.0, position_temperature=0.1, semantic_weight=0.1)
    model.set_entity_embeddings(hashed_embeddings([describe(name) for name in names]), names)
    model.set_position_embeddings(hashed_embeddings(position_prompts()), MEDKLIP_POSITIONS)

    def collator(training: bool) -> FindingsCollator:
        return FindingsCollator(processor, splits.image_folder, names, unmentioned="absent", training=training)

    evaluation = MedKlipEvaluation(collator(False))
    return Family(
        model,
        FindingsObjective(),
        collator,
        evaluation,
        signal=lambda model, batch: model(**batch).logits,
        parts=("vision", "connector"),  # its descriptions are embedded once, by a model that is not part of it
    )


FAMILIES: dict[str, Callable[[Splits], Family]] = {
    "blip": blip,
    "git": git,
    "dual_encoder": dual_encoder,
    "patch_ib": patch_ib,
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
    "smolvlm": smolvlm,
    "biovil_t": biovil_t,
    "medklip": medklip,
}


def build(name: str, splits: Splits) -> Family:
    """The family `name`, with the same weights at every call."""
    torch.manual_seed(0)
    return FAMILIES[name](splits)
