"""Which checkpoints are whole, which one a run goes on from, and what is said of the others. No model is made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_medvlm.data.disk import disk_trouble, naming_what_is_written
from hf_medvlm.data.locks import LOCK, release
from hf_medvlm.training import folders
from hf_medvlm.training.checkpoints import (
    MANIFEST,
    checkpoint_to_resume,
    last_checkpoint,
    rotate,
    what_is_wrong,
    write_manifest,
)
from hf_medvlm.training.folders import choose_output_dir

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def checkpoint(run: Path, step: int, processes: int = 1, zero_stage: int | None = None, files=FILES) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in files:
        state = f'{{"global_step":{step},"max_steps":9,"log_history":[]}}'.ljust(50)
        (folder / name).write_text(state if name == "trainer_state.json" else "x" * 50)
    write_manifest(folder, step, processes, zero_stage)
    return folder


def training(run: Path, asked: object = "True", processes: int = 1, **options: object) -> SimpleNamespace:
    given = {"output_dir": str(run), "world_size": processes, "process_index": 0, "deepspeed": None} | options
    return SimpleNamespace(resume_from_checkpoint=asked, **given)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_or_cut_is_told_by_its_name(tmp_path, name):
    folder = checkpoint(tmp_path, 5)
    assert what_is_wrong(folder) is None
    cut(folder / name)
    assert what_is_wrong(folder) == f"{name} has 20 bytes of 50"
    (folder / name).unlink()
    assert what_is_wrong(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    "state",
    ["{}", "[]", "{", '{"global_step": "2", "max_steps": 9, "log_history": []}', "\ufeff{}"]
    + ['{"global_step": 2, "max_steps": 9, "log_history": [1]}']
    + ['{"global_step": 2, "max_steps": 9, "log_history": [], "steps": 1}'],
)
def test_a_state_that_the_trainer_could_not_read_is_told(tmp_path, state):
    """A file of the right size, which somebody has edited."""
    folder = checkpoint(tmp_path, 5)
    (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    write_manifest(folder, 5, 1, None)
    assert "its trainer_state.json" in what_is_wrong(folder)


def test_without_a_manifest_a_checkpoint_was_not_written_to_its_end(tmp_path):
    folder = checkpoint(tmp_path, 5)
    for content in ("", "[]", '{"files": 5}', '{"files": {"model.safetensors": "x"}}', '{"files": {"mod'):
        (folder / MANIFEST).write_text(content)
        assert MANIFEST in what_is_wrong(folder), content
    (folder / MANIFEST).unlink()
    assert "not written to its end" in what_is_wrong(folder)


def test_the_newest_whole_one_is_gone_on_from_and_the_damaged_ones_are_named(tmp_path, capsys):
    for step in (5, 10, 15, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-100" / MANIFEST).unlink()
    cut(tmp_path / "checkpoint-15" / "trainer_state.json")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(training(tmp_path)) == str(tmp_path / "checkpoint-10")
    told = capsys.readouterr().out
    assert "checkpoint-15: trainer_state.json has 20 bytes of 50; it is passed over" in told
    assert "checkpoint-100: it has no manifest.json" in told and "goes on from checkpoint-10" in told


def test_a_named_checkpoint_that_is_damaged_is_refused_with_the_whole_one_beside_it(tmp_path):
    checkpoint(tmp_path, 5)
    damaged = checkpoint(tmp_path, 10)
    (damaged / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="optimizer.pt is missing; go on from .*checkpoint-5, or .*--model_name_or_pa"):
        checkpoint_to_resume(training(tmp_path, str(damaged)))
    with pytest.raises(ValueError, match="no such folder"):
        checkpoint_to_resume(training(tmp_path, str(tmp_path / "checkpoint-7")))


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path):
    checkpoint(tmp_path, 5, files=("model.safetensors", "trainer_state.json"))
    with pytest.raises(ValueError, match=r"checkpoint-5: it holds weights alone.*--model_name_or_path"):
        checkpoint_to_resume(training(tmp_path))


@pytest.mark.parametrize("asked", [None, False, "False", "false", ""])
def test_who_does_not_ask_starts_anew(tmp_path, asked):
    checkpoint(tmp_path, 5)
    assert checkpoint_to_resume(training(tmp_path, asked)) is None


def universal_form(checkpoint: Path, step: int) -> None:
    """What DeepSpeed's ds_to_universal leaves of a checkpoint, in short."""
    folder = checkpoint / f"global_step{step}_universal" / "zero"
    folder.mkdir(parents=True)
    (folder / "optimizer_state.pt").write_text("")
    (checkpoint / "latest_universal").write_text(folder.parent.name)


def test_another_number_of_processes_is_said_and_under_zero_refused(tmp_path, capsys):
    checkpoint(tmp_path / "plain", 5, processes=2)
    assert checkpoint_to_resume(training(tmp_path / "plain", processes=1))
    assert "written by 2 process(es) and goes on in 1" in capsys.readouterr().out
    zero2 = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match="written without DeepSpeed, and this run is under ZeRO stage 2"):
        checkpoint_to_resume(training(tmp_path / "plain", processes=2, deepspeed=zero2))
    checkpoint(tmp_path / "zero", 5, processes=2, zero_stage=2)
    assert checkpoint_to_resume(training(tmp_path / "zero", processes=2, deepspeed=zero2))
    of_three = training(tmp_path / "zero", processes=3, deepspeed=zero2, load_best_model_at_end=True)
    (tmp_path / "zero" / "checkpoint-5" / "latest").write_text("global_step5")
    command = rf"\n  python -m .*{tmp_path}.*global_step5_universal$"
    words = rf"shards of 2 ZeRO processes, and this run has 3\. Start 2 processes.*{command}"
    with pytest.raises(ValueError, match=words):
        checkpoint_to_resume(of_three)
    universal_form(tmp_path / "zero" / "checkpoint-5", 5)
    assert checkpoint_to_resume(of_three)
    assert "written by 2 ZeRO process(es) and goes on in 3 from its universal form" in capsys.readouterr().out
    best = checkpoint(tmp_path / "zero", 4, processes=2, zero_stage=2)
    (best / "latest").write_text("global_step4")
    state = tmp_path / "zero" / "checkpoint-5" / "trainer_state.json"
    text = state.read_text().strip()[:-1] + ',"best_model_checkpoint":"runs/checkpoint-4"}'
    state.write_text(text)
    write_manifest(state.parent, 5, 2, 2)
    with pytest.raises(ValueError, match="checkpoint-4/global_step4_universal$"):  # what the run ends on
        checkpoint_to_resume(of_three)
    universal_form(best, 4)
    assert checkpoint_to_resume(of_three)
    with pytest.raises(ValueError, match="under ZeRO stage 2, and this run is without DeepSpeed"):
        checkpoint_to_resume(training(tmp_path / "zero", processes=2))


def test_the_oldest_go_but_never_the_best_nor_the_one_just_written(tmp_path):
    made = {step: checkpoint(tmp_path, step) for step in (20, 5, 10, 15)}  # in the order of their making
    rotate(tmp_path, 2, [made[15], made[20]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-15", "checkpoint-20"]
    rotate(tmp_path, 1, [made[15], made[20]])
    rotate(tmp_path, None, [made[15]])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_ended_or_was_stopped_is_not_written_over(tmp_path):
    run = tmp_path / "run"
    checkpoint(run, 5)
    named = str(run)
    with pytest.raises(ValueError, match="holds a run that was stopped .checkpoint-5.; go on with it by --resume_from"):
        choose_output_dir(named, "r", None, False)
    assert choose_output_dir(named, "r", "True", False) == named
    assert choose_output_dir(named, "r", None, True) == named
    (run / "run.json").write_text("{}")
    assert choose_output_dir(named, "r", "True", False) == named, "the page was not written yet"
    (run / "report.html").write_text("")
    for asked in ("True", str(run / "checkpoint-5")):
        with pytest.raises(ValueError, match="has ended .run.json., so that there is nothing to go on with"):
            choose_output_dir(named, "r", asked, False)
    assert choose_output_dir(named, "r", "True", True) == named


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), "File too large"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"), "No space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "No space left"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (KeyError("eval_loss"), None),
    ],
)
def test_every_library_s_word_for_a_full_disk_becomes_one_sentence(error, reason):
    assert (disk_trouble(error) or "").startswith(reason or "") and bool(disk_trouble(error)) == bool(reason)
    expected = OSError if reason else type(error)
    with pytest.raises(expected, match="could not write here: .*; way out" if reason else None):
        with naming_what_is_written("here", "; way out"):
            raise error


def test_the_manifest_lists_folders_inside_too(tmp_path):
    (tmp_path / "checkpoint-1" / "global_step1").mkdir(parents=True)
    (tmp_path / "checkpoint-1" / "global_step1" / "shard.pt").write_bytes(b"1")
    folder = tmp_path / "checkpoint-1"
    write_manifest(folder, 1, 2, 3)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest == {"step": 1, "processes": 2, "zero_stage": 3, "files": {"global_step1/shard.pt": 1}}


def test_two_starts_at_once_take_two_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders.reserve_output_dir(None, "r", None, False) == "runs/r/1"
    seen_by_both = iter(["runs/r/1", "runs/r/1", "runs/r/2"])  # the other one has made it meanwhile
    monkeypatch.setattr(folders, "choose_output_dir", lambda *given: next(seen_by_both))
    assert folders.reserve_output_dir(None, "r", None, False) == "runs/r/2"
    for number in (1, 2):
        assert (tmp_path / f"runs/r/{number}" / LOCK).exists()
        release(tmp_path / f"runs/r/{number}")
    assert not list((tmp_path / "runs/r").iterdir()), "a run that did not begin takes no number"
