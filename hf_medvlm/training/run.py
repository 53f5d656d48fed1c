"""`fit()`: preflight, train, evaluate, save, draw, push. What every recipe ends with."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_medvlm import __version__
from hf_medvlm.data.counting import count_patients, hash_studies
from hf_medvlm.data.disk import naming_what_is_written, sentence
from hf_medvlm.data.fields import ALL_TEXT
from hf_medvlm.data.files import atomic_open, load_json, write_json
from hf_medvlm.data.load import Splits, load_splits
from hf_medvlm.data.locks import release
from hf_medvlm.data.rows import StudyRows
from hf_medvlm.data.secrets import masked, masked_values
from hf_medvlm.data.sources.base import Rejected
from hf_medvlm.evaluation.base import Scores, without_nan
from hf_medvlm.shipped import checkout_commit
from hf_medvlm.training.callbacks import Throughput, peak_memory_mb
from hf_medvlm.training.checkpoints import (
    all_checkpoints,
    remove_checkpoint,
)
from hf_medvlm.training.folders import RUN_FILE
from hf_medvlm.training.image_cache import use_image_cache
from hf_medvlm.training.interrupt import leave, listening, stopped_at_once
from hf_medvlm.training.loading import choose_workers
from hf_medvlm.training.lora import is_adapted, write_merged
from hf_medvlm.training.machines import check_once
from hf_medvlm.training.preflight import preflight
from hf_medvlm.training.provenance import provenance
from hf_medvlm.training.resuming import way_on
from hf_medvlm.training.trainer import MedVLMTrainer

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "deepspeed", "numpy", "pillow")


def run(main: Callable[[], Any], option: str = "--output_dir") -> None:
    """Call a recipe's `main`; bad input ends in one line that says what to do, not in a traceback.

    So do Ctrl-C and SIGTERM, after a checkpoint, with the exit status 128 + the signal's number.
    `HF_MEDVLM_DEBUG=1` shows the traceback all the same.

    Args:
        option: what names the place that it writes to.
    """
    with listening():
        try:
            main()
        except KeyboardInterrupt as stopped:
            leave(getattr(stopped, "signal_number", signal.SIGINT))
        except Exception as error:
            if stopped_at_once():
                leave(stopped_at_once())
            if os.environ.get("HF_MEDVLM_DEBUG") or not isinstance(error, ValueError | OSError | ImportError):
                raise
            print(f"error: {masked(sentence(error, sys.argv[1:], option))}", file=sys.stderr)
            print("(HF_MEDVLM_DEBUG=1 shows where this was raised)", file=sys.stderr)
            sys.exit(1)
        leave_processes()


def leave_processes() -> None:
    """Close the process group, if there is one: a Python that ends with gloo's threads alive aborts now and then."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def load_data(args: SimpleNamespace) -> Splits:
    """`load_splits` with the options of `DataArguments`; the main process goes first and makes what has to be made, and
    one process a machine checks the images."""
    return load_splits(
        **vars(args.data),
        sections=getattr(args.model, "sections", ALL_TEXT),
        held_out=scores_all(args),
        check=check_once(args.training),
        turn=args.training.main_process_first(local=False),
    )


def scores_all(args: SimpleNamespace) -> bool:
    """Whether every study that is not marked as training is scored: nothing is trained, and the model has not been
    trained on this very data set, whose training patients a hash has dealt out."""
    if not args.training.evaluate_only or args.data.dataset == "synthetic":
        return False
    described = Path(getattr(args.model, "model_name_or_path", None) or "") / RUN_FILE
    if not described.is_file():
        return True
    trained_on = load_json(described, dict).get("dataset")
    if trained_on == Path(args.data.dataset).name:
        print(f"The model was trained on {trained_on}: only what was held out of its training is scored", flush=True)
        return False
    return True


def fit(
    trainer: MedVLMTrainer,
    splits: Splits,
    args: SimpleNamespace,
    more: Callable[[dict[str, Scores]], object] | None = None,
) -> dict[str, Scores]:
    """Check, train, evaluate and leave a complete run in `args.training.output_dir`.

    Args:
        trainer: with model, collators and evaluation.
        splits: what `load_splits` gave.
        args: what `parse` gave.
        more: adds what a recipe scores besides to the scores, in all processes, before any of it is written: what came
            after `run.json` would be missing from a run that was killed in between.

    Returns:
        `{"eval": Scores, "test": Scores}` for the splits that have studies; nothing after a `--dry_run`.

    Raises:
        ValueError: the preflight found something that must stop the run.
    """
    start = time.time()
    training, folder = args.training, Path(args.training.output_dir)
    main_process = trainer.is_world_process_zero()
    if not splits.validate and not training.evaluate_only:
        train_without_evaluation(trainer)
    choose_workers(training, len(splits.train))
    checks = preflight(trainer, splits, args)
    if main_process:
        print(checks.text(), flush=True)
    checks.stop_if_needed()
    if training.dry_run:
        if main_process and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # the Trainer has made it; a run that did not happen takes no number
        return {}
    checkpoint = None if training.evaluate_only else training.resume_from_checkpoint  # `parse` has looked at it
    collators = [trainer.data_collator, getattr(trainer.evaluation, "collator", None)]
    use_image_cache([each for each in collators if each is not None], splits, training)
    if main_process:
        folder.mkdir(parents=True, exist_ok=True)
        _begin(folder, anew=not (checkpoint or training.evaluate_only) and training.overwrite_output_dir)
        write_rejected(splits.rejected, folder)
    if training.early_stopping_patience and splits.validate:
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    throughput = Throughput()
    trainer.add_callback(throughput)
    if not training.evaluate_only:
        trainer.train(resume_from_checkpoint=checkpoint)
        with naming_what_is_written(folder, way_on(folder)):
            trainer.save_model()
            trainer.save_state()
    trained = time.time()

    results = {}
    for name, split in (("eval", "validate"), ("test", "test")):
        if splits.studies[split]:
            results[name] = trainer.scores(StudyRows(splits.studies[split]))
    if more is not None:
        more(results)
    if main_process and trainer.evaluation and not training.evaluate_only:
        half = "bfloat16" if training.bf16 else "float16" if training.fp16 else None
        trainer.evaluation.write_settings(folder, autocast=half)
    if is_adapted(trainer.model) and args.model.merge_lora and not training.evaluate_only:
        write_merged(trainer, folder)
    if main_process:
        for name, scores in results.items():
            write_json(folder / f"{name}_results.json", scores.to_dict())
        if results:
            last = results.get("test") or results["eval"]
            write_predictions(last, folder)
            print(f"\n{list(results)[-1]} split, {last.n} studies\n{last.table()}\n", flush=True)
        cost = {
            "train_seconds": round(trained - start, 1),
            "evaluate_seconds": round(time.time() - trained, 1),
            "images_per_second": round(throughput.images_per_second(), 2),
            "peak_memory_mb": peak_memory_mb(),
        }
        described = masked_values(describe_run(trainer, splits, args) | cost, [training.hub_token])
        write_json(folder / RUN_FILE, without_nan(described))
        finish(folder, args)
        release(folder)
    trainer.accelerator.wait_for_everyone()
    return results


def train_without_evaluation(trainer: MedVLMTrainer) -> None:
    """There is no validation split: nothing is evaluated on the way, and the last weights are kept."""
    trainer.args.eval_strategy = IntervalStrategy.NO
    trainer.args.load_best_model_at_end = False
    if trainer.args.save_strategy == SaveStrategy.BEST:
        trainer.args.save_strategy = SaveStrategy.STEPS


def finish(folder: Path, args: SimpleNamespace) -> None:
    """Everything that is made from the saved results alone: figures, report page, model card; and the push."""
    from hf_medvlm.figures import draw_all
    from hf_medvlm.figures.report import write_report
    from hf_medvlm.sharing.hub import push, write_model_card
    from hf_medvlm.sharing.trackers import send_figures

    training = args.training
    page = f". The run's results are in {folder}: free some space, then draw its page with: hf-medvlm report {folder}"
    with naming_what_is_written(folder / "report.html", page):
        draw_all(folder)
        write_report(folder)
    send_figures(folder, training)
    print(f"The run is in {folder}; open {folder / 'report.html'}", flush=True)
    if training.evaluate_only:
        return  # there is no model in this folder to describe or to push
    write_model_card(folder)
    if training.push_when_done:
        url = push(
            folder,
            training.hub_model_id or folder.name,
            private=training.hub_private_repo is not False,
            token=training.hub_token,
            public_acknowledged=training.hub_public_acknowledged,
        )
        print(f"Pushed to {url}", flush=True)


def _begin(folder: Path, anew: bool) -> None:
    """From here on the folder holds an unfinished run: what an earlier one left as its result goes.

    Args:
        anew: so do its checkpoints.
    """
    for name in (RUN_FILE, "eval_results.json", "test_results.json", "predictions.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in all_checkpoints(folder) if anew else ():
        remove_checkpoint(checkpoint)


def leave_scores(scores: Scores, folder: Path, info: dict[str, Any], rejected: Sequence[Rejected] = ()) -> None:
    """Results, predictions, figures and page of scores that no model of ours was run for.

    Args:
        info: what `run.json` says; versions and the command are added. rejected: what was left out.
    """
    from hf_medvlm.figures import draw_all, write_report

    with naming_what_is_written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "test_results.json", scores.to_dict())
    write_predictions(scores, folder)
    write_rejected(rejected, folder)
    stated = {"hf_medvlm": __version__, "python": platform.python_version(), "created": time.strftime("%Y-%m-%d")}
    write_json(folder / RUN_FILE, stated | {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])} | info)
    try:
        draw_all(folder)
        write_report(folder)
    except OSError:
        (folder / RUN_FILE).unlink(missing_ok=True)  # without its page it is no finished run, and may be made again
        raise


def write_rejected(rejected: Sequence[Rejected], folder: Path) -> None:
    """`rejected.jsonl`: what was left out of the data, and why; nothing where nothing was."""
    if rejected:
        with atomic_open(folder / "rejected.jsonl") as handle:
            for entry in rejected:
                handle.write(json.dumps(vars(entry), ensure_ascii=False) + "\n")


def write_predictions(scores: Scores, folder: Path) -> None:
    """`predictions.jsonl`: one study a line."""
    with atomic_open(folder / "predictions.jsonl") as handle:
        for prediction in scores.predictions:
            handle.write(json.dumps(without_nan(prediction), ensure_ascii=False) + "\n")


def describe_run(trainer: MedVLMTrainer, splits: Splits, args: SimpleNamespace) -> dict[str, Any]:
    """What `run.json` says: enough to run it again and to know what it ran on."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = [(p.ds_numel if hasattr(p, "ds_numel") else p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "recipe": args.recipe,
        "command": args.command,
        "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "hf_medvlm": __version__,
        "commit": checkout_commit(),
        "versions": {name: installed for name in PACKAGES if (installed := installed_version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(trainer.args.device),
        "processes": trainer.accelerator.num_processes,
        "seed": trainer.args.seed,
        "model_class": type(model).__name__,
        "parameters": sum(n for n, _ in parameters),
        "trainable_parameters": sum(n for n, trainable in parameters if trainable),
        **provenance(splits, args, trainer.processing_class),
        "image_folder": str(splits.image_folder),
        "data_hash": data_hash(splits),
        "split_sizes": {split: len(studies) for split, studies in splits.studies.items()},
        "patients": count_patients(splits.studies.values()),
        "rejected": splits.rejections(),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_checkpoint_metric": trainer.args.metric_for_best_model,
    }


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def data_hash(splits: Splits) -> str:
    """SHA-256 over the studies of all splits, in their order: equal hashes mean equal studies (not equal pixels)."""
    return hash_studies(splits.studies.values())
