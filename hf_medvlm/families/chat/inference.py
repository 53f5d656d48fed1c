"""Chat models on new radiographs: the report that the run's evaluation would have had, and answers to questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hf_medvlm.checked import either, flag, many, name, record, words
from hf_medvlm.data.conversations import ChatOptions, with_question
from hf_medvlm.data.rows import Row
from hf_medvlm.data.study import Study
from hf_medvlm.errors import clipped
from hf_medvlm.evaluation.base import SETTINGS
from hf_medvlm.families.chat.attention import word_attention
from hf_medvlm.families.chat.collator import ChatCollator, image_tokens
from hf_medvlm.families.chat.evaluation import ChatEvaluation
from hf_medvlm.families.chat.message_collator import MessageCollator
from hf_medvlm.families.chat.message_evaluation import MessageEvaluation
from hf_medvlm.families.chat.model import LlavaReporter
from hf_medvlm.families.chat.processors import load_processor as load_any_processor
from hf_medvlm.families.chat.rendering import chat_template_of
from hf_medvlm.families.chat.stock import load_stock
from hf_medvlm.families.chat.tiny import make_processor
from hf_medvlm.inference.predictor import Predictor
from hf_medvlm.inference.writer import WriterPredictor
from hf_medvlm.models.clear_errors import clear_errors
from hf_medvlm.models.loading import load_processor, load_tokenizer, model_type_of

NO_CHAT = ("blip", "git", "blip-2", "pix2struct", "vision-encoder-decoder", "kosmos-2")
"""Models of transformers' list that write, but take no conversation."""
LLAVA = ("llava", "medvlm_llava")
MODEL_TYPES = (*LLAVA, *sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - {*LLAVA, *NO_CHAT}))


def takes(folder: Path, model_type: str | None) -> bool:
    """Whether the folder is of this family: LLaVA, or any model of transformers that reads images and chats."""
    return model_type in MODEL_TYPES


def load_predictor(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Predictor:
    """The chat model in `folder`, with the template and the prompts of its run."""
    options = _options(folder, settings.get("options") or {})
    collator: ChatCollator | MessageCollator
    model: PreTrainedModel
    # `recipes/finetune_chat.py` trains a LLaVA too, with the template that its processor brings
    if model_type_of(folder) in LLAVA and "system_prompt" not in settings:
        reporter = model = LlavaReporter.from_published(folder, dtype=dtype)
        template = settings.get("template", ChatCollator.template)
        collator = ChatCollator(load_chat_processor(folder, reporter), folder, template=template, options=options)
        evaluation_class: type[ChatEvaluation] = ChatEvaluation
    else:
        processor = load_any_processor(folder)
        chat_template_of(processor)  # refuses a model without one before gigabytes are read
        model = load_stock(folder, dtype)
        collator = MessageCollator(processor, folder, options=options, system_prompt=settings.get("system_prompt", ""))
        evaluation_class = MessageEvaluation
    collator.max_length = settings.get("max_length", collator.max_length)
    written = getattr(model, "generation_config", None)
    evaluation = evaluation_class(
        collator,
        collator.tokenizer,
        (),
        max_new_tokens=settings.get("max_new_tokens") or getattr(written, "max_new_tokens", None) or 256,
        num_beams=settings.get("num_beams") or getattr(written, "num_beams", None) or 1,
    )
    return ChatPredictor(model, evaluation, folder)


def load_chat_processor(folder: Path, model: LlavaReporter) -> Any:
    """The processor that lies beside the weights; LLaVA's usual one where only a tokenizer does.

    Raises:
        ValueError: it cannot be used, or gives an image another number of tokens than the model.
    """
    vision, strategy = model.config.vision_config, model.config.vision_feature_select_strategy
    if not (folder / "processor_config.json").is_file():
        return make_processor(load_tokenizer(folder), vision.image_size, vision.patch_size)
    processor = load_processor(folder)
    if processor.patch_size is None:  # old files leave both to config.json
        processor.patch_size = vision.patch_size
        processor.vision_feature_select_strategy = processor.vision_feature_select_strategy or strategy
    with clear_errors(folder, "processor_config.json"):
        tokens = image_tokens(processor)
    if tokens != model.image_tokens:
        raise ValueError(
            f"{folder}: by its processor_config.json an image takes {tokens} tokens, by its config.json "
            f"{model.image_tokens}; compare patch_size, crop_size, num_additional_image_tokens and "
            "vision_feature_select_strategy with those of the published files"
        )
    return processor


OPTIONS = record(prompts=many(name), sections=either(many(name), name), indication=flag, views=words, prior=flag)


def _options(folder: Path, written: dict[str, Any]) -> ChatOptions:
    """How the run made conversations, as `inference.json` keeps it.

    Raises:
        ValueError: a name that is no such option, or a value that it cannot have.
    """
    place = f"{folder}: {SETTINGS} 'options'"
    known = {field.name for field in fields(ChatOptions)}
    unknown = [key for key in written if key not in known]
    if unknown:
        raise ValueError(f"{place} has {clipped(unknown[0])}, which is none of {', '.join(sorted(known))}")
    given: dict[str, Any] = {key: value for key, value in OPTIONS(written, place).items() if value is not None}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    try:
        return ChatOptions(**given)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


class ChatPredictor(WriterPredictor):
    """Writes reports and answers questions; a LLaVA that reads one image shows where it looked."""

    family = "a chat model"
    look = staticmethod(word_attention)
    priors: Mapping[str, Study] = {}

    @property
    def abilities(self) -> frozenset[str]:  # type: ignore[override]
        options = self.collator.options
        one_image = isinstance(self.model, LlavaReporter) and options.views != "all" and not options.prior
        return frozenset({"report", "ask", *(("ground",) if one_image else ())})

    @property
    def takes_previous(self) -> bool:  # type: ignore[override]
        """Where it was trained with `--prior`."""
        return self.collator.options.prior

    def see(self, image_folder: str | Path | Mapping[str, Image.Image], priors: Iterable[Study] = ()) -> None:
        super().see(image_folder, priors)
        self.priors = {study.study_id: study for study in priors}

    def collate(self, rows: list[Row], question: str = "") -> dict[str, Any]:
        return self._batch(rows, [question] * len(rows))

    def _batch(self, rows: list[Row], questions: list[str]) -> dict[str, Any]:
        asked = questions or [""] * len(rows)
        return self.evaluation.collate_images(
            [replace(row, study=self._asked(row.study, text)) for row, text in zip(rows, asked, strict=True)]
        )

    def length(self, study: Study) -> int:
        """Images, which are most of a prompt's tokens."""
        return len(study.images) if self.collator.options.views == "all" or study.conversations else 1

    def _asked(self, study: Study, question: str) -> Study:
        """The study with the question; one that brings a conversation of its own keeps it, unless one is asked."""
        if study.conversations and not question:
            return study
        prior = self.priors.get(study.prior_study_id or "")
        return with_question(study, self.collator.options, prior, question)
