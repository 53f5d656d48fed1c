"""What is checked before a GPU hour is spent: each line ok, warning or STOP, with the way out. Trains nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from hf_medvlm.data.counting import count_patients, count_text_sources, find_shared
from hf_medvlm.data.fields import section_alternatives
from hf_medvlm.data.load import Splits
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.sources.base import nearest
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.metrics.clinical import what_is_missing
from hf_medvlm.models.preprocessing import describe_pixels
from hf_medvlm.training.arguments import split_names
from hf_medvlm.training.checks import OK, STOP, WARNING, Checks
from hf_medvlm.training.image_cache import check_image_cache
from hf_medvlm.training.loading import check_loading
from hf_medvlm.training.preflight_resources import check_resources, parameter_sizes
from hf_medvlm.training.preflight_scores import check_classes, check_headline

if TYPE_CHECKING:
    from hf_medvlm.training.trainer import MedVLMTrainer

SHOWN_TEXT = 100  # characters of a supervised text


def preflight(trainer: MedVLMTrainer, splits: Splits, args: SimpleNamespace) -> Checks:
    """Look at data, supervision, model, steps, and at everything a run needs around it; run nothing."""
    checks = Checks()
    _random_weights(checks, trainer, splits, args)
    _data(checks, splits)
    _sections(checks, splits, _option(args, "sections"))
    _leakage(checks, splits)
    _supervision(checks, trainer, show_text=args.training.dry_run)
    _inputs(checks, trainer, splits, _option(args, "sections"))
    _model(checks, trainer)
    _steps(checks, trainer)
    _best_metric(checks, trainer)
    check_headline(checks, trainer, splits)
    check_classes(checks, trainer, splits)
    if trainer.args.dry_run:
        check_loading(checks, trainer)
    check_image_cache(checks, trainer.data_collator, splits, trainer.args)
    if hasattr(trainer, "check_family"):
        trainer.check_family(checks)
    check_resources(checks, trainer, splits, args)
    _clinical(checks, args)
    return checks


def _clinical(checks: Checks, args: SimpleNamespace) -> None:
    """Which clinical metrics will have a score, and what the others lack."""
    names = split_names(_option(args, "clinical_metrics") or "")
    judge = bool(_option(args, "judge_url"))
    for name, lacks in what_is_missing(names, _option(args, "clinical_weights"), judge).items():
        checks.add(WARNING if lacks else OK, "clinical", f"no {name}: {lacks}" if lacks else f"{name}: all is there")


FEW = 20  # studies of a split, below which its scores say little
MANY_EPOCHS = 100


def _random_weights(checks: Checks, trainer: MedVLMTrainer, splits: Splits, args: SimpleNamespace) -> None:
    """Say first of all where somebody's own studies would train a toy."""
    named = any(hasattr(group, "model_name_or_path") for group in vars(args).values())
    if named and splits.name != "synthetic" and _option(args, "model_name_or_path") is None:
        checks.add(
            WARNING,
            "random model",
            f"no --model_name_or_path: a tiny {type(trainer.model).__name__} with random weights is trained on "
            f"{splits.name}, which is a test of the data and no model for use; start from a checkpoint, as the "
            "--config beside each recipe does",
        )


def _data(checks: Checks, splits: Splits) -> None:
    sizes = ", ".join(f"{len(studies)} {split}" for split, studies in splits.studies.items())
    patients = count_patients(splits.studies.values())
    checks.add(OK, "data", f"{splits.name}: {sizes} studies of {patients} patients, images in {splits.image_folder}")
    for note in splits.notes:
        checks.add(OK, "table", note)
    first = {entry.reason: entry for entry in reversed(splits.rejected)}
    for reason, count in splits.rejections().items():
        checks.add(WARNING, "left out", f"{count} x {reason}; the first: {first[reason]}")
    for split in ("validate", "test"):
        if not splits.studies[split]:
            checks.add(WARNING, "data", f"the {split} split is empty; there will be no {split} scores")
            if split == "validate":
                checks.add(WARNING, "data", "nothing is evaluated while training, and the last weights are kept")
        elif len(splits.studies[split]) < FEW and splits.name != "synthetic":
            chosen = "; they choose the best checkpoint" if split == "validate" else ""
            sentence = (
                f"the {split} split has {len(splits.studies[split])} studies, so that its scores say little{chosen}"
            )
            checks.add(WARNING, "data", sentence)


def _option(args: SimpleNamespace, name: str) -> Any:
    """The value of an option that stands in one group in some recipes and in another in others; None where in none."""
    return next((getattr(group, name) for group in vars(args).values() if hasattr(group, name)), None)


def _sections(checks: Checks, splits: Splits, sections: str | None) -> None:
    """How many studies each alternative of `--sections` gives the text of; falling back is said, never silent."""
    counts = count_text_sources(splits.studies.values(), sections) if sections is not None else None
    if sections is None or not counts:
        return
    alternatives = section_alternatives(sections)
    state = OK if len(counts) == 1 or not counts.keys() - {alternatives[0]} else WARNING
    given = "; ".join(f"{','.join(names)} of {counts[names]} studies" for names in alternatives if counts[names])
    way_out = f"; --sections {','.join(alternatives[0])} leaves the others out" if state == WARNING else ""
    checks.add(state, "text", given + way_out)


def _leakage(checks: Checks, splits: Splits) -> None:
    """Patients and images that stand in two splits."""
    shared, twice = find_shared(splits.studies)
    if shared:
        way_out = "split by patient, with --patient_column or with prepare_data.py"
        checks.add(STOP, "leakage", f"{len(shared)} patients stand in two splits, {shared[0]!r} first; {way_out}")
    elif twice:
        checks.add(
            WARNING, "leakage", f"{twice} images stand in two splits; scores on them are no test of anything new"
        )
    elif not splits.patients_known:
        way_out = "name their column with --patient_column, or give each sample of a conversation file a patient_id"
        checks.add(WARNING, "leakage", f"patients are not known, so that one may be in two splits; {way_out}")
    else:
        checks.add(OK, "leakage", "no patient and no image stands in two splits")


def _supervision(checks: Checks, trainer: MedVLMTrainer, show_text: bool) -> None:
    """Collate one training batch; count what is supervised in it, and in a dry run show a piece of it."""
    rows, collator = trainer.train_dataset, trainer.data_collator
    if rows is None or not len(rows):
        return  # nothing is trained
    first = first_rows(rows, 4)
    batch = collator(first)
    if "labels" in batch:
        labels = batch["labels"]
        counts = (labels >= 0).reshape(len(labels), -1).sum(1).tolist()  # below 0 is masked or not known
        message = f"{counts} labels in the first {len(counts)} studies"
        state = OK
        if hasattr(collator, "prompts") and 0 in counts:  # a model that writes
            state = STOP
            message += "; a study without a label teaches nothing: is its text empty, or longer than the model takes?"
        elif not any(counts):
            state = WARNING
            message += "; a study without a label teaches nothing: have the studies the labels that this model learns?"
        checks.add(state, "supervised", message)
    if show_text and "labels" in batch and hasattr(collator, "prompts"):  # a model that writes
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        text = tokenizer.decode([label for label in batch["labels"][0].tolist() if label != IGNORE_INDEX])
        checks.add(OK, "supervised", repr(text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "..."))
    if getattr(collator, "image_tokens", None):
        checks.add(OK, "image tokens", f"{collator.image_tokens} an image")
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if torch.is_tensor(value))
    checks.add(OK, "batch", shapes)


def _inputs(checks: Checks, trainer: MedVLMTrainer, splits: Splits, sections: str | None) -> None:
    """How pixels are prepared, and whether the model tells texts apart where it embeds them."""
    processor = getattr(trainer.processing_class, "image_processor", trainer.processing_class)
    if hasattr(processor, "model_input_names") and "pixel_values" in processor.model_input_names:
        checks.add(OK, "pixels", describe_pixels(processor))
    look_at_texts = getattr(trainer.evaluation, "preflight", None)
    if look_at_texts is not None and sections is not None:
        texts = [study.text(sections) for study in splits.train[:50]]
        for state, what, sentence in look_at_texts(trainer.accelerator.unwrap_model(trainer.model), texts):
            checks.add(state, what, sentence)


def _model(checks: Checks, trainer: MedVLMTrainer) -> None:
    sizes = parameter_sizes(trainer.model)
    total, trained = sum(n for n, _, _ in sizes), sum(n for n, _, trainable in sizes if trainable)
    sentence = f"{type(trainer.model).__name__}, {total:,} parameters, {trained:,} trained, {total - trained:,} frozen"
    checks.add(
        OK if trained else STOP, "model", sentence + ("" if trained else "; nothing would be trained: thaw a part")
    )


def _best_metric(checks: Checks, trainer: MedVLMTrainer) -> None:
    """Stop where `--metric_for_best_model` is none of the family's: the first evaluation would find out."""
    name, evaluation = trainer.args.metric_for_best_model, trainer.evaluation
    if name is None or evaluation is None or evaluation.knows(name):
        return
    near = nearest(name, evaluation.METRICS)
    there = ", ".join(evaluation.METRICS)
    checks.add(STOP, "best metric", f"--metric_for_best_model {name}: no such score here{near}; there are {there}")


def _steps(checks: Checks, trainer: MedVLMTrainer) -> None:
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    studies = len(trainer.train_dataset or ())
    if not studies:
        return  # nothing is trained
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * max(studies // batch, 1))
    epochs = steps * batch / studies
    many = epochs > MANY_EPOCHS
    way_out = f"; each study would be seen {epochs:.0f} times: lower --max_steps or --num_train_epochs" if many else ""
    checks.add(
        WARNING if many else OK,
        "steps",
        f"{steps} steps of {batch} studies ({args.per_device_train_batch_size} a device x "
        f"{args.gradient_accumulation_steps} accumulated x {args.world_size} processes), "
        f"{epochs:.1f} epochs, on {args.device}{way_out}",
    )
    if hasattr(args, "contrastive_batch_size"):
        checks.add(OK, "negatives", f"{batch - 1} for each pair, over all micro-batches and processes")


def first_rows(rows: StudyRows, count: int) -> list:
    """The first `count` rows, fewer where there are not so many."""
    return [rows[i] for i in range(min(len(rows), count))]
