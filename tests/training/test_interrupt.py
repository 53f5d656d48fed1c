"""A signal ends a run with a checkpoint, a word how to go on, an exit status that says so, and no worker left."""

from __future__ import annotations

import copy
import multiprocessing
import os
import shlex
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from families import build
from steps import make_trainer
from transformers import TrainerCallback

from hf_medvlm.data.locks import LOCK, release_all, take
from hf_medvlm.training import interrupt
from hf_medvlm.training.checkpoints import what_is_wrong
from hf_medvlm.training.run import run

OPTIONS = {"max_steps": 5, "per_device_train_batch_size": 3, "optim": "adamw_torch", "learning_rate": 1e-3}
OPTIONS |= {"logging_steps": 4, "save_strategy": "steps", "save_steps": 4}


class SignalInStep(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def family(splits):
    return build("medklip", splits)


@pytest.fixture(scope="module")
def whole(family, splits, tmp_path_factory):
    trainer = make_trainer(copy.deepcopy(family), splits, tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


def interrupted(family, splits, folder, *numbers, step=2, **options) -> int:
    """The exit status of a run that a signal reaches in its second step."""
    release_all()  # folders that recipes of other tests of this process still hold
    trainer = make_trainer(copy.deepcopy(family), splits, folder, **(OPTIONS | options))
    trainer.add_callback(SignalInStep(step, *numbers))
    before = signal.getsignal(signal.SIGTERM)

    def main() -> None:
        take(folder)
        trainer.train()

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (folder / LOCK).exists()
    return int(ended.value.code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_saves_says_how_to_go_on_and_ends_on_the_same_bits(family, splits, whole, tmp_path, capfd, number):
    code = interrupted(family, splits, tmp_path / "cut", number, dataloader_num_workers=1)
    assert code == 128 + number
    assert not multiprocessing.active_children()
    assert what_is_wrong(tmp_path / "cut" / "checkpoint-2") is None
    told = capfd.readouterr().err
    assert "this step is finished and a checkpoint saved" in told
    assert "cut/checkpoint-2 is whole; go on from it with\n" in told
    assert told.strip().splitlines()[-1].endswith("cut --resume_from_checkpoint True")
    resumed = make_trainer(copy.deepcopy(family), splits, tmp_path / "cut", **OPTIONS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert all(torch.equal(resumed.model.state_dict()[key], value) for key, value in whole.model.state_dict().items())
    kept = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert kept[0] == kept[1]


def test_what_a_launcher_passes_on_is_no_second_signal_but_a_second_one_stops_at_once(
    family, splits, tmp_path, capfd, monkeypatch
):
    assert interrupted(family, splits, tmp_path / "a", signal.SIGINT, signal.SIGINT, signal.SIGTERM) == 130
    assert (tmp_path / "a" / "checkpoint-2").exists()
    monkeypatch.setattr(interrupt, "APART", 0.0)
    assert interrupted(family, splits, tmp_path / "b", signal.SIGTERM, signal.SIGTERM) == 143
    assert "before there was a checkpoint; start again with" in capfd.readouterr().err


def test_by_epochs_the_last_step_of_one_is_evaluated_before_it_is_saved(family, splits, tmp_path):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "mean_auc", "num_train_epochs": 2, "max_steps": -1}
    assert interrupted(family, splits, tmp_path / "a", signal.SIGTERM, step=2, **options) == 143
    state = (tmp_path / "a" / "checkpoint-2" / "trainer_state.json").read_text()
    assert "eval_mean_auc" in state


def test_before_the_training_a_run_stops_at_once(tmp_path, capfd):
    reached = []

    def main() -> None:
        take(tmp_path / "run")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("more")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 143 and not reached and not (tmp_path / "run").exists()
    assert "Interrupted by SIGTERM, before there was a checkpoint" in capfd.readouterr().err


ARGUMENTS = ["--seed", "3", "--output_dir", "o", "--resume_from_checkpoint", "--bf16=True"]
LAUNCHES = {  # how it was started: the command lines above the process, its own, how it goes on
    "alone": ([["bash"]], ["python", "r.py", *ARGUMENTS], "python r.py"),
    "torchrun": (
        [["python", "torchrun", "--nproc_per_node", "2", "r.py", *ARGUMENTS], ["bash"]],
        ["python", "-u", "r.py", *ARGUMENTS],
        "python torchrun --nproc_per_node 2 r.py",
    ),
    "deepspeed": (
        [
            ["python", "-m", "deepspeed.launcher.launch", "--world_info=x", "r.py", *ARGUMENTS],
            ["python", "deepspeed", "--num_accelerators", "2", "r.py", *ARGUMENTS],
            ["srun", "r.sh"],
        ],
        ["python", "-u", "r.py", "--local_rank=0", *ARGUMENTS],
        "python deepspeed --num_accelerators 2 r.py",
    ),
    "module": (
        [["python", "accelerate", "launch", "-m", "hf_medvlm", "train", "r", *ARGUMENTS]],
        ["python", "-m", "hf_medvlm", "train", "r", *ARGUMENTS],
        "python accelerate launch -m hf_medvlm train r",
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_command_to_go_on_with_is_the_one_it_was_started_with(monkeypatch, name):
    above, typed, begins = LAUNCHES[name]
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", typed[-len(ARGUMENTS) - 1 - ("--local_rank=0" in typed) :])
    parents = [SimpleNamespace(cmdline=lambda words=words: words) for words in above]
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parents=lambda: parents))
    with interrupt.listening():
        again = interrupt.restart_command("runs/r/1")
        anew = interrupt.restart_command(None)
    assert again == f"{begins} --seed 3 --bf16=True --output_dir runs/r/1 --resume_from_checkpoint True"
    assert anew == f"{begins} {shlex.join(ARGUMENTS)}"
