"""What the two captioning recipes share: their options, their defaults, and the wiring of model and data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hf_medvlm.data.counting import Texts
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.text import TextEvaluation
from hf_medvlm.families.captioners.attention import word_attention
from hf_medvlm.families.captioners.collator import CaptionCollator
from hf_medvlm.families.captioners.model import BlipCaptioner, GitCaptioner
from hf_medvlm.models.loading import check_family, load_image_processor, load_strictly, load_tokenizer
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.models.upstream import OLD_PREFIX
from hf_medvlm.rewards.reward import make_reward
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import SECTIONS_HELP, option
from hf_medvlm.training.clinical import ClinicalArguments
from hf_medvlm.training.deepspeed import unsharded
from hf_medvlm.training.objective import TokenObjective
from hf_medvlm.training.parts import PartArguments, prepare_parts
from hf_medvlm.training.reward_arguments import RewardArguments
from hf_medvlm.training.reward_trainer import RewardTrainer
from hf_medvlm.training.trainer import MedVLMTrainer
from hf_medvlm.training.words import learnable

DEFAULTS = {"metric_for_best_model": "cider", "greater_is_better": True}

TINY = arguments.TINY | {
    "sections": "findings",
    "max_steps": 1000,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 100,
    "learning_rate": 5e-3,
    "adam_beta2": 0.98,
}

# GIT's layers normalise after the sum, as BERT's do, and want smaller steps.
TINY_GIT = TINY | {"learning_rate": 1e-3}


@dataclass
class CaptioningArguments(PartArguments, ClinicalArguments, RewardArguments):
    """The captioner and how it writes."""

    model_name_or_path: str | None = option(None, "folder or Hub id; a tiny model with random weights by default")
    image_size: int | None = option(None, "side of the square images; the checkpoint's own by default")
    sections: str = option(ALL_TEXT, SECTIONS_HELP)
    prompt: str = option("", "text in front of every report, given and not learnt")
    max_length: int = option(128, "tokens of a report at most, in training and in generation")
    num_beams: int = option(1, "beams of the search for a text; 1 is greedy search")


def load_captioner(
    model_class: type[BlipCaptioner | GitCaptioner], args: SimpleNamespace, splits: Splits
) -> tuple[Any, Any]:
    """Model and processor from `--model_name_or_path`, or tiny ones with a tokenizer trained on the training reports.

    Raises:
        ValueError: the checkpoint is of another family, or its weights do not fit; a reward without a checkpoint.
    """
    options: CaptioningArguments = args.model
    path = options.model_name_or_path
    if path is None and options.reward:
        raise ValueError(
            "--reward makes a model that writes reports write better ones; give the folder of a supervised run as "
            "--model_name_or_path (first run this recipe without --reward)"
        )
    if path is None:
        tokenizer = train_tokenizer(learnable(splits.train, lambda study: [study.text(options.sections)]))
        size = options.image_size or 224
        model = model_class.tiny(tokenizer, size)
        processor = model_class.tiny_processor(tokenizer, size)
    else:
        check_family(path, model_class, (OLD_PREFIX + model_class.config_class.model_type,))
        image_processor = load_image_processor(path, options.image_size)
        processor = model_class.make_processor(image_processor, load_tokenizer(path))
        with unsharded(args.training) if options.image_size else nullcontext():
            model = load_strictly(model_class, path)
            if options.image_size:
                model.resize_images(options.image_size)
    return model, processor


def captioning_trainer(model: Any, processor: Any, splits: Splits, args: SimpleNamespace) -> MedVLMTrainer:
    """Collators and evaluation around a captioner, of which the parts train that the options name.

    Raises:
        ValueError: `--max_length` is more than the model has positions for.
    """
    options: CaptioningArguments = args.model
    limit = model.config.get_text_config(decoder=True).max_position_embeddings
    if options.max_length > limit:
        raise ValueError(f"--max_length {options.max_length}: the model takes {limit} tokens; lower --max_length")
    sections = options.sections

    def collator(training: bool) -> CaptionCollator:
        return CaptionCollator(
            processor,
            splits.image_folder,
            first_token=model.first_token(model.config),
            sections=sections,
            prompt=options.prompt,
            max_length=options.max_length,
            training=training and args.training.augment,
            seed=args.training.seed,
        )

    model.set_generation(options.max_length, options.num_beams)
    stock = model
    model = prepare_parts(model, options, args.training.gradient_checkpointing)
    objective = TokenObjective(label_smoothing=model.label_smoothing)
    evaluation = TextEvaluation(
        collator(training=False),
        processor.tokenizer,
        Texts(splits.train, lambda study: study.text(sections)),
        objective,
        max_new_tokens=options.max_length,
        num_beams=options.num_beams,
        look=word_attention,
        **args.model.clinical(),
    )
    reports = evaluation.train_reports
    parts = {
        "model": model,
        "args": args.training,
        "data_collator": collator(training=True),
        "evaluation": evaluation,
        "train_dataset": StudyRows(splits.train),
        "eval_dataset": StudyRows(splits.validate),
        "processing_class": processor,
    }
    if not options.reward:
        return MedVLMTrainer(objective=objective, **parts)
    options.check_reward()
    if "metric_for_best_model" not in args.explicit:
        args.training.metric_for_best_model = "reward"
    return RewardTrainer(
        reward=make_reward(options.reward, evaluation.collator.target, reports, options.clinical_weights),
        options=options,
        reference=start_model(type(stock), args) if options.reward_kl else None,
        start_rows=[StudyRows(splits.studies[split]) for split in ("validate", "test")],
        **parts,
    )


def start_model(model_class: type[BlipCaptioner | GitCaptioner], args: SimpleNamespace) -> Any:
    """The checkpoint of `--model_name_or_path` once more, whole in each process, for `--reward_kl`."""
    with unsharded(args.training):
        model = load_strictly(model_class, args.model.model_name_or_path)
        if args.model.image_size:
            model.resize_images(args.model.image_size)
    return model
