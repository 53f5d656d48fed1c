"""What the two dual-encoder recipes share: their options, their defaults, and the wiring of model and data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import ProcessorMixin

from hf_medvlm.collators.pairs import PairCollator
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.evaluation.retrieval import RetrievalEvaluation
from hf_medvlm.families.dual_encoder.model import DualEncoderModel
from hf_medvlm.families.dual_encoder.processor import (
    build_processor,
    pair_processor,
    published_processor,
    set_image_size,
)
from hf_medvlm.families.dual_encoder.published import is_published
from hf_medvlm.models.loading import (
    check_family,
    find_folder,
    load_processor,
    load_strictly,
    model_type_of,
)
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import SECTIONS_HELP, option
from hf_medvlm.training.contrastive import ContrastiveTrainer
from hf_medvlm.training.parts import PartArguments, prepare_parts
from hf_medvlm.training.words import learnable

DEFAULTS = {"metric_for_best_model": "combined", "greater_is_better": True}

TINY = arguments.TINY | {
    "max_steps": 700,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "sentence_share": 0.3,
}


@dataclass
class PairArguments(PartArguments):
    """The dual encoder, its texts and its loss."""

    model_name_or_path: str | None = option(
        None,
        "folder or Hub id, ours or published (CLIP, SigLIP, BiomedCLIP, ...); or VISION,TEXT: two pretrained towers, "
        "such as a ViT and a BERT; a tiny model with random weights by default",
    )
    image_size: int | None = option(None, "side of the square images; the checkpoint's own by default")
    sections: str = option(ALL_TEXT, SECTIONS_HELP)
    max_length: int = option(256, "tokens of a text at most")
    projection_size: int | None = option(None, "width of the joint space; 512 for two towers, 64 for a tiny model")
    vision_projection: str | None = option(None, "projection of image features: linear (default) or mlp")
    text_projection: str | None = option(None, "projection of text features: linear (default) or mlp")
    text_pooling: str | None = option(
        None,
        "cls, mean, last (decoders) or pooler (CLIP, SigLIP): how a text's tokens become one vector; by default "
        "as the text tower was trained",
    )
    loss: str | None = option(
        None, "contrastive loss: info_nce or sigmoid; by default the checkpoint's own, or info_nce"
    )
    temperature: float | None = option(
        None, "temperature of the loss at the start; by default the checkpoint's, or 0.07"
    )
    match_duplicates: bool = option(True, "equal reports match each other's images")
    local_loss: str | None = option(None, "local loss between patches and tokens: gloria, mgca or filip")
    local_weight: float = option(1.0, "weight of the local loss")
    sentence_share: float = option(0.0, "share of the training texts of which one random sentence is taken")
    combined_weights: str = option("0.7,0.3", "weights of mean recall and AUC in the score `combined`")
    probe_studies: int = option(1000, "training studies that the linear probe learns from; 0: no probe")

    def model_options(self, synthetic: bool = True) -> dict[str, Any]:
        """The options of the model's config that were given.

        Args:
            synthetic: the studies are made up.
        """
        names = ["projection_size", "vision_projection", "text_projection", "text_pooling", "loss", "temperature"]
        names += ["local_loss"]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        fixed = ("match_duplicates", "local_weight")
        return given | {name: getattr(self, name) for name in fixed}

    @property
    def weights(self) -> tuple[float, float]:
        """`--combined_weights` as numbers.

        Raises:
            ValueError: it is not two numbers, or they do not sum to more than 0.
        """
        try:
            recall, auc = (float(part) for part in self.combined_weights.split(","))
        except ValueError as error:
            raise ValueError(f"--combined_weights {self.combined_weights}: two numbers, such as 0.7,0.3") from error
        if not (recall >= 0 and auc >= 0 and 0 < recall + auc < float("inf")):
            raise ValueError(f"--combined_weights {self.combined_weights}: neither below 0, and not both 0")
        return recall, auc


def load_dual_encoder(
    model_class: type[DualEncoderModel], options: PairArguments, splits: Splits, **bottleneck: Any
) -> tuple[DualEncoderModel, ProcessorMixin]:
    """Model and processor: tiny ones, two pretrained towers, or a checkpoint of ours or of open_clip's.

    Args:
        bottleneck: further options of the model's config.

    Raises:
        ValueError: the checkpoint is of another family, or its weights do not fit.
    """
    path, config = options.model_name_or_path, options.model_options(splits.name == "synthetic") | bottleneck
    if path is None:
        size = options.image_size or 224
        tokenizer = train_tokenizer(learnable(splits.train, lambda study: [study.text(options.sections)]))
        return model_class.tiny(tokenizer, size, **config), build_processor(tokenizer, size)
    if "," in path:
        vision, text = (name.strip() for name in path.split(",", 1))
        model = model_class.from_vision_text_pretrained(vision, text, **config)
        return model, pair_processor(vision, text, model.config, options.image_size)
    published = Path(path) if Path(path).is_file() else find_folder(path)
    if is_published(published):
        model = model_class.from_published(published, **config)
        return model, published_processor(published, model.config, options.image_size)
    folder = published
    check_family(folder, model_class, (DualEncoderModel.config_class.model_type,))
    if check_is(folder, model_class):
        model = load_strictly(model_class, folder, **config)
    else:
        wider: Any = model_class
        model = wider.from_dual_encoder(load_strictly(DualEncoderModel, folder), **config)
    processor = load_processor(folder)
    if options.image_size:
        set_image_size(processor.image_processor, options.image_size)
    return model, processor


def check_is(folder: Path, model_class: type[DualEncoderModel]) -> bool:
    """Whether the folder's checkpoint is of this very class, not of the plain dual encoder that it is built on."""
    return model_type_of(folder) == model_class.config_class.model_type


def dual_encoder_trainer(
    model: DualEncoderModel,
    processor: ProcessorMixin,
    splits: Splits,
    args: SimpleNamespace,
    evaluation_class: type[RetrievalEvaluation] = RetrievalEvaluation,
) -> ContrastiveTrainer:
    """Collators and evaluation around a dual encoder, of which the parts train that the options name."""
    model = prepare_parts(model, args.model, args.training.gradient_checkpointing)
    options: PairArguments = args.model

    plain = PairCollator(
        processor,
        splits.image_folder,
        sections=options.sections,
        max_length=options.max_length,
        seed=args.training.seed,
    )
    probe = StudyRows(splits.train[: options.probe_studies]) if options.probe_studies else None
    return ContrastiveTrainer(
        model=model,
        args=args.training,
        data_collator=replace(plain, training=args.training.augment, sentence_share=options.sentence_share),
        evaluation=evaluation_class(plain, model, probe_rows=probe, combined_weights=options.weights),
        train_dataset=StudyRows(splits.train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=processor,
    )
