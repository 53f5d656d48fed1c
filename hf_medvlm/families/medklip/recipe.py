"""What `train_medklip.py` is made of: its options, its defaults, and the wiring of model, descriptions and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import ViTImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from hf_medvlm.data.files import load_json
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.study import Study
from hf_medvlm.families.medklip.collator import PRESENT, FindingsCollator, entity_states, study_triplets
from hf_medvlm.families.medklip.descriptions import DESCRIPTIONS, describe, position_prompts, text_embeddings
from hf_medvlm.families.medklip.evaluation import MedKlipEvaluation, published_name
from hf_medvlm.families.medklip.model import MedKlipModel
from hf_medvlm.labels import MEDKLIP_ENTITIES, MEDKLIP_POSITIONS
from hf_medvlm.models.loading import check_family, load_image_processor, load_strictly
from hf_medvlm.training import arguments
from hf_medvlm.training.arguments import option, split_names
from hf_medvlm.training.objective import FindingsObjective
from hf_medvlm.training.parts import PartArguments, prepare_parts
from hf_medvlm.training.trainer import MedVLMTrainer

DEFAULTS = {"metric_for_best_model": "mean_auc", "greater_is_better": True}

TINY = arguments.TINY | {
    "max_steps": 1800,
    "eval_studies": 800,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "unmentioned": "absent",
    "held_out_entities": "consolidation",
    "position_temperature": 0.1,
}

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VAGUE = frozenset(
    "normal clear sharp sharply unremarkable intact stable free expand aerate process abnormality disease finding tip "
    "borderline tail_abnorm_obs excluded_obs".split()
)
"""Entities that are no finding by themselves: not chosen unless they are named."""
RAREST = 0.05  # share of the training studies that must show an entity, and be without it, for it to be chosen


@dataclass
class MedKlipArguments(PartArguments):
    """The model, what it looks for and how it learns."""

    model_name_or_path: str | None = option(
        None, "our folder or Hub id, or the published .pth file; a tiny random model by default"
    )
    image_size: int | None = option(None, "side of the square images; the checkpoint's own (224) by default")
    text_encoder: str | None = option(
        None,
        "folder or Hub id of the BERT that embeds descriptions (emilyalsentzer/Bio_ClinicalBERT); by default hashing",
    )
    descriptions: str | None = option(None, "JSON file, entity -> description; by default the project's own")
    entities: str = option("", "entities to look for, separated by commas; by default those the training reports show")
    held_out_entities: str = option("", "entities that are not trained, and scored by their description alone")
    unmentioned: str = option("ignore", "what an entity counts as that a report does not mention: ignore or absent")
    findings_from: str = option("report", "report: the project's rules; radgraph: its model, fetched from the Hub")
    position_weight: float = option(1.0, "weight a1 of the position loss")
    position_temperature: float | None = option(
        None, "temperature of the position loss over cosines; by default MedKLIP's dot products"
    )
    position_samples: int = option(8, "positions that the position loss chooses from, one of them right")
    semantic_weight: float = option(0.0, "weight a2 of the semantic loss, 1 - cosine to the description")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.findings_from not in ("report", "radgraph"):
            raise ValueError(f"--findings_from {self.findings_from}: there are report and radgraph")

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of the model's configuration that options set."""
        names = ("position_weight", "position_temperature", "semantic_weight")
        return {name: getattr(self, name) for name in names}

    @property
    def held_out(self) -> tuple[str, ...]:
        return tuple(published_name(name) for name in split_names(self.held_out_entities))


def prepare_findings(splits: Splits, options: MedKlipArguments) -> Splits:
    """The splits with RadGraph's triplets in them where `--findings_from radgraph` asks for them."""
    if options.findings_from == "report":
        return splits
    from hf_medvlm.data.radgraph import annotate

    return replace(splits, studies={split: annotate(studies) for split, studies in splits.studies.items()})


def choose_entities(studies: Sequence[Study], unmentioned: str, held_out: Sequence[str] = ()) -> list[str]:
    """MedKLIP's entities that `RAREST` of the studies show and as many are without; vague and held-out ones are not.

    Raises:
        ValueError: there is no such entity.
    """
    states = [entity_states(study_triplets(study), MEDKLIP_ENTITIES, unmentioned) for study in studies]
    counts = Counter(
        (name, state) for row in states for name, state in zip(MEDKLIP_ENTITIES, row.tolist(), strict=True)
    )
    chosen = [
        name
        for name in MEDKLIP_ENTITIES
        if name not in VAGUE
        and name not in held_out
        and min(counts[name, PRESENT], counts[name, 0]) >= RAREST * len(studies)
    ]
    if not chosen:
        raise ValueError(
            f"no entity is present in {RAREST:.0%} of the training reports and absent in as many; name some with "
            "--entities, or let --unmentioned absent count what is not mentioned"
        )
    return chosen


def load_medklip(options: MedKlipArguments, splits: Splits) -> tuple[MedKlipModel, BaseImageProcessor]:
    """Model and image processor, with what to look for embedded and in place.

    Raises:
        ValueError: the checkpoint is of another family, its weights do not fit, or there are no entities.
    """
    path = options.model_name_or_path
    model: MedKlipModel
    if path is None:
        model, size = MedKlipModel.tiny(**options.changes), options.image_size or 224
    elif is_published(path):
        model, size = MedKlipModel.from_published(path, **options.changes), options.image_size or 224
        model.train()
    else:
        check_family(path, MedKlipModel)
        model, size = load_strictly(MedKlipModel, path, **options.changes), None
    processor = (
        ViTImageProcessorPil(size={"height": size, "width": size}, **IMAGENET)
        if size
        else load_image_processor(str(path), options.image_size)
    )
    entities = [published_name(name) for name in split_names(options.entities)] or list(model.config.entities)
    if not entities:
        entities = (
            [name for name in MEDKLIP_ENTITIES if name not in options.held_out]
            if path
            else choose_entities(splits.train, options.unmentioned, options.held_out)
        )
    if entities != list(model.config.entities) or options.text_encoder or options.descriptions:
        model.set_entity_embeddings(embed(entities, model, options), entities)
    if not model.config.num_positions:
        prompts = text_embeddings(position_prompts(), options.text_encoder, model.config.text_size)
        model.set_position_embeddings(prompts, MEDKLIP_POSITIONS)
    return model, processor


def is_published(path: str) -> bool:
    """A weight file, or a folder without the `config.json` that ours have."""
    return Path(path).is_file() or (Path(path).is_dir() and not (Path(path) / "config.json").is_file())


def embed(entities: Sequence[str], model: MedKlipModel, options: MedKlipArguments) -> Any:
    """Embeddings (E, text_size) of the entities' descriptions.

    Raises:
        ValueError: the file of descriptions is no JSON object of texts or lacks an entity.
    """
    written = DESCRIPTIONS
    if options.descriptions:
        written = load_json(options.descriptions)
        missing = [name for name in entities if not isinstance(written, dict) or not isinstance(written.get(name), str)]
        if missing:
            raise ValueError(
                f"{options.descriptions}: a JSON object of entity -> description is needed; "
                f"{', '.join(missing[:5])} is not described"
            )
    texts = [written.get(name) or describe(name) for name in entities]
    return text_embeddings(texts, options.text_encoder, model.config.text_size)


def medklip_trainer(
    model: MedKlipModel, processor: BaseImageProcessor, splits: Splits, args: SimpleNamespace
) -> MedVLMTrainer:
    """Collators and evaluation around the model, of which the parts train that the options name."""
    model = prepare_parts(model, args.model, args.training.gradient_checkpointing)
    options: MedKlipArguments = args.model
    held_out = [name for name in options.held_out if name not in model.config.entities]

    def collator(entities: Sequence[str], training: bool) -> FindingsCollator:
        return FindingsCollator(
            processor,
            splits.image_folder,
            entities,
            model.config.positions or MEDKLIP_POSITIONS,
            position_samples=options.position_samples,
            unmentioned=options.unmentioned,
            training=training and args.training.augment,
            seed=args.training.seed,
        )

    return MedVLMTrainer(
        model=model,
        args=args.training,
        objective=FindingsObjective(),
        data_collator=collator(model.config.entities, training=True),
        evaluation=MedKlipEvaluation(
            collator([*model.config.entities, *held_out], training=False),
            embed(held_out, model, options) if held_out else None,
            text_encoder=options.text_encoder,
        ),
        train_dataset=StudyRows(splits.train),
        eval_dataset=StudyRows(splits.validate),
        processing_class=processor,
    )
