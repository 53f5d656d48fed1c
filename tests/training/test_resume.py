"""A training that is stopped and gone on with ends as one that was not: steps, losses, best model, early stopping."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path

import pytest
import torch
from families import build
from steps import make_trainer
from transformers import EarlyStoppingCallback

from hf_medvlm.training.checkpoints import last_checkpoint, what_is_wrong

OPTIONS = {
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "logging_steps": 4,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": None,
}


@pytest.fixture(scope="module")
def family(splits):
    return build("medklip", splits)


@pytest.fixture(scope="module")
def whole(family, splits, tmp_path_factory):
    """A run of five steps, two and a half epochs, with checkpoints after the third and the last."""
    trainer = make_trainer(copy.deepcopy(family), splits, tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


def resumed(family, splits, checkpoint: Path, callbacks=(), **options):
    trainer = make_trainer(copy.deepcopy(family), splits, checkpoint.parent, **(OPTIONS | options))
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def same(one, other) -> bool:
    return all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())


def losses(trainer) -> list[tuple]:
    kept = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [(e["step"], *(e[name] for name in sorted(e) if name.startswith("loss"))) for e in kept]


def test_after_the_last_checkpoint_no_further_step_is_trained(family, splits, whole, capsys):
    folder = Path(whole.args.output_dir)
    after = resumed(family, splits, folder / "checkpoint-5")
    assert after.state.global_step == 5
    assert same(after.model, whole.model)
    assert losses(after) == losses(whole)
    assert "checkpoint-5 is the end of the training" in capsys.readouterr().out
    fewer = resumed(family, splits, folder / "checkpoint-5", max_steps=4)
    assert fewer.state.global_step == 5 and same(fewer.model, whole.model)


def test_between_two_logs_the_history_of_losses_is_the_same_too(family, splits, whole, tmp_path):
    folder = Path(whole.args.output_dir)
    (tmp_path / "run").mkdir()
    (folder / "checkpoint-3").rename(tmp_path / "run" / "checkpoint-3")
    after = resumed(family, splits, tmp_path / "run" / "checkpoint-3")
    assert losses(after) == losses(whole) and len(losses(whole)[0]) > 2, "named terms are among them"
    assert same(after.model, whole.model)


def test_a_run_that_had_stopped_early_stays_stopped_and_ends_on_its_best(family, splits, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 9, "learning_rate": 0.0}
    options |= {
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_auc",
    }  # which never changes at a rate of 0
    trainer = make_trainer(copy.deepcopy(family), splits, tmp_path / "a", **(OPTIONS | options))
    trainer.add_callback(EarlyStoppingCallback(2))
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.best_global_step == 1
    (tmp_path / "a").rename(tmp_path / "moved")
    after = resumed(family, splits, tmp_path / "moved" / "checkpoint-3", [EarlyStoppingCallback(2)], **options)
    assert after.state.global_step == 3
    assert after.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-1")
    counting = resumed(family, splits, tmp_path / "moved" / "checkpoint-2", [EarlyStoppingCallback(2)], **options)
    assert counting.state.global_step == 3, "one evaluation without a better score was counted before"


def test_a_disk_that_takes_no_more_is_one_sentence_and_the_earlier_checkpoint_is_whole(family, splits, tmp_path):
    trainer = make_trainer(copy.deepcopy(family), splits, tmp_path, **(OPTIONS | {"max_steps": 9}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    class FullAfterTheFirst(EarlyStoppingCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(state.global_step)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

        on_train_begin = on_evaluate = lambda self, *args, **kwargs: None

    trainer.add_callback(FullAfterTheFirst())
    try:
        with pytest.raises(
            OSError, match=r"could not write .*checkpoint-6: .*; checkpoint-3 is whole\. Free some space"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert seen == [3]
    assert not (tmp_path / "checkpoint-6").exists()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_checkpoint_that_is_written_again_is_torn_until_it_is_whole(family, splits, whole, tmp_path, monkeypatch):
    trainer = make_trainer(copy.deepcopy(family), splits, tmp_path, **(OPTIONS | {"max_steps": 3}))
    trainer.train()
    torn = tmp_path / "checkpoint-3"
    assert what_is_wrong(torn) is None
    saved = []

    def stop(*args, **kwargs):
        saved.append(what_is_wrong(torn))
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, None)
    assert saved == [what_is_wrong(torn)] and "not written to its end" in saved[0]
    assert json.loads((torn / "config.json").read_text())
