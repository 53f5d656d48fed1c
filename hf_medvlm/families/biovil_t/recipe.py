"""What the two BioViL-T recipes share: their options, their defaults, and the wiring of model and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_medvlm.data.counting import count_pairs
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.families.biovil_t.collator import PriorCollator, find_priors
from hf_medvlm.families.biovil_t.evaluation import HEADLINES, BioViLTEvaluation
from hf_medvlm.families.biovil_t.features import FeatureOptions
from hf_medvlm.families.biovil_t.model import BioViLTModel
from hf_medvlm.families.biovil_t.processor import BioViLTImageProcessor, BioViLTProcessor
from hf_medvlm.labels import CHEXPERT_14
from hf_medvlm.models.loading import check_family, find_folder, load_processor, load_strictly, load_tokenizer
from hf_medvlm.models.tiny import train_tokenizer
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import SECTIONS_HELP, option, split_names
from hf_medvlm.training.contrastive import ContrastiveTrainer
from hf_medvlm.training.parts import PartArguments, prepare_parts
from hf_medvlm.training.words import learnable

DEFAULTS = {"metric_for_best_model": "task_score", "greater_is_better": True}

TINY = arguments.TINY | {
    "max_steps": 900,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "sections": "findings",
    "sentence_share": 0.5,
    "progression_weight": 4.0,
    "evidence_weight": 1.5,
    "local_weight": 0.0,  # GLoRIA's words cost a third of the time, and patches are taught where things are without
}


EXTRACT = {"per_device_eval_batch_size": 32, "dataloader_num_workers": 1, "verify_images": False}


@dataclass
class BioViLTModelArguments:
    """The model and what it reads."""

    model_name_or_path: str | None = option(
        None,
        "our folder, or a folder or Hub id with the published image model and CXR-BERT; a tiny random model by default",
    )
    image_size: int | None = option(None, "side of the crop, and of the tiny model's image; the model's own by default")
    sections: str = option(ALL_TEXT, SECTIONS_HELP)
    max_length: int = option(128, "tokens of a text at most")


@dataclass
class BioViLTArguments(PartArguments, BioViLTModelArguments):
    """What the model is fine-tuned for."""

    task: str = option("progression", "progression, findings or alignment; all of them align images with reports too")
    findings: str = option(
        "", "findings of the task, separated by commas; by default those that the training studies label"
    )
    global_weight: float = option(1.0, "weight of the contrast of whole studies")
    local_weight: float = option(0.5, "weight of the contrast of patches with words")
    evidence_weight: float = option(0.0, "weight of telling the report from each patch alone")
    progression_weight: float = option(2.0, "weight of the cross-entropy of the progression classifier")
    sentence_share: float = option(0.0, "share of the training texts of which one random sentence is taken")
    findings_weight: float = option(1.0, "weight of the cross-entropy of the finding classifier")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in HEADLINES:
            raise ValueError(f"--task {self.task}: there are {', '.join(HEADLINES)}")

    def changes(self, splits: Splits) -> dict[str, Any]:
        """The fields of the model's configuration that options set: losses, the classifiers that the task needs.

        Progression learns the findings beside, as far as they are labelled: a change is seen in what is there.

        Raises:
            ValueError: no training study is labelled for the task.
        """
        names = (
            "global_weight",
            "local_weight",
            "evidence_weight",
            "progression_weight",
            "findings_weight",
        )
        chosen = {name: getattr(self, name) for name in names}
        if self.task != "alignment":
            chosen["findings"] = labelled_findings(splits.train)
        if self.task == "progression":
            chosen["progression_findings"] = list(split_names(self.findings)) or followed_findings(splits.train)
        elif self.task == "findings" and self.findings:
            chosen["findings"] = list(split_names(self.findings))
        if (
            self.task != "alignment"
            and not chosen["progression_findings" if self.task == "progression" else "findings"]
        ):
            wanted = 'a "progression" entry' if self.task == "progression" else "labels of presence and of absence"
            others = ", ".join(task for task in HEADLINES if task != self.task)
            raise ValueError(f"--task {self.task}: no training study has {wanted}; choose another --task ({others})")
        return chosen


@dataclass
class ExtractArguments(BioViLTModelArguments):
    """Which features are written, and how. The batch is `--per_device_eval_batch_size`."""

    features: str = option("image,patch,text", "any of image, patch, text")
    splits: str = option("train,validate,test", "the splits whose studies are taken, in this order")
    shard_size: int = option(1024, "studies a file, a multiple of the batch")
    dtype: str = option("float32", "type of the numbers on disk: float32, float16 or bfloat16")


def load_biovil_t(
    options: BioViLTModelArguments, splits: Splits, **changes: Any
) -> tuple[BioViLTModel, BioViLTProcessor]:
    """Model and processor.

    Args:
        changes: of the model's configuration.

    Raises:
        ValueError: the checkpoint is of another family, or its weights do not fit.
    """
    path = options.model_name_or_path
    if path is not None and not Path(path).is_file():
        path = str(find_folder(path))
    if path is None:
        tokenizer = train_tokenizer(learnable(splits.train, lambda study: [study.text(options.sections)]))
        size = options.image_size or 224
        return BioViLTModel.tiny(tokenizer, **changes), BioViLTProcessor(BioViLTImageProcessor(size, size), tokenizer)
    if is_published(path):
        model = BioViLTModel.from_published(path, **changes)
        if model.config.text_config is None:
            raise ValueError(
                f"{path} holds the image side alone; training needs the CXR-BERT too: put config.json, its weights and "
                "its vocabulary beside the .pt file and give the folder"
            )
        crop = 448 if model.config.temporal else 480
        processor = BioViLTImageProcessor(crop_size=options.image_size or crop)
        return model, BioViLTProcessor(processor, load_tokenizer(path))
    check_family(path, BioViLTModel)
    processor = load_processor(path, BioViLTProcessor)
    if options.image_size:
        processor.image_processor.crop_size = options.image_size
    return load_strictly(BioViLTModel, path, **changes), processor


def is_published(path: str | Path) -> bool:
    """Whether `path` is the original project's: a file, or a folder with a `.pt` image model."""
    return Path(path).is_file() or any(Path(path).glob("*image*.pt"))


def labelled_findings(studies: Sequence[Study]) -> list[str]:
    """Findings that some studies are labelled to have and others not to have; CheXpert's first, in their order."""
    seen = count_pairs(studies, "labels").keys()
    return _in_order({name for name, _ in seen if {(name, 0), (name, 1)} <= seen})


def followed_findings(studies: Sequence[Study]) -> list[str]:
    """Findings whose progression the studies tell; CheXpert's first, in their order."""
    return _in_order({name for name, _ in count_pairs(studies, "progression")})


def _in_order(names: set[str]) -> list[str]:
    ordered = [name for name in CHEXPERT_14 if name in names]
    return ordered + sorted(names - set(ordered))


def prior_collator(
    model: BioViLTModel, processor: BioViLTProcessor, splits: Splits, args: SimpleNamespace, training: bool = False
) -> PriorCollator:
    """The collator of what the model reads and what its classifiers learn; priors are looked up in all splits."""
    priors = find_priors(*splits.studies.values())
    return PriorCollator(
        processor,
        splits.image_folder,
        sections=args.model.sections,
        max_length=args.model.max_length,
        training=training,
        seed=args.training.seed,
        priors=priors if model.config.temporal else {},
        progression_findings=tuple(model.config.progression_findings),
        findings=tuple(model.config.findings),
    )


def biovil_t_trainer(
    model: BioViLTModel, processor: BioViLTProcessor, splits: Splits, args: SimpleNamespace
) -> ContrastiveTrainer:
    """Collators and evaluation around a BioViL-T, of which the parts train that the options name."""
    model = prepare_parts(model, args.model, args.training.gradient_checkpointing)
    plain = prior_collator(model, processor, splits, args)
    return ContrastiveTrainer(
        model=model,
        args=args.training,
        data_collator=replace(plain, training=args.training.augment, sentence_share=args.model.sentence_share),
        evaluation=BioViLTEvaluation(plain, model, task=args.model.task, train_studies=splits.train),
        train_dataset=StudyRows(splits.train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=processor,
    )


def feature_options(args: SimpleNamespace) -> FeatureOptions:
    """`FeatureOptions` from the command line."""
    return FeatureOptions(
        kinds=split_names(args.model.features),
        batch_size=args.training.per_device_eval_batch_size,
        shard_size=args.model.shard_size,
        dtype=args.model.dtype,
        workers=args.training.dataloader_num_workers,
    )


def chosen_studies(splits: Splits, names: str) -> list[Study]:
    """The studies of the splits in `names`, in that order.

    Raises:
        ValueError: an unknown split, or no study in any of them.
    """
    chosen = split_names(names)
    if not set(chosen) <= set(splits.studies):
        raise ValueError(f"--splits {names}: there are {', '.join(splits.studies)}")
    studies = [study for name in chosen for study in splits.studies[name]]
    if not studies:
        raise ValueError(f"--splits {names}: they hold no study")
    return studies
