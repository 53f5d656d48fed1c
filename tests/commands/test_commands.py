"""`hf-medvlm`: the table of commands, their help, and recipes run away from the checkout."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import launch
import pytest

from hf_medvlm import __main__ as console
from hf_medvlm import __version__
from hf_medvlm.commands.recipes import NOT_TRAINING, training_recipes
from hf_medvlm.shipped import find_shipped, shipped_folder


def test_no_command_prints_the_table_and_is_no_error(capsys):
    console.main([])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and text in printed for name, (_, text) in console.COMMANDS.items())


def test_the_version_and_the_help_import_no_torch():
    code = (
        "import sys; from hf_medvlm.__main__ import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit as stop: assert not stop.code\nassert 'torch' not in sys.modules"
    )
    for word in ("--version", "--help"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
        assert "hf-medvlm" in done.stdout
    done = subprocess.run([sys.executable, "-m", "hf_medvlm", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


@pytest.mark.parametrize("name", console.COMMANDS)
def test_each_command_has_its_two_functions_and_a_help(name, capsys):
    module = importlib.import_module(console.COMMANDS[name][0])
    assert module.__doc__ and callable(module.run)
    with pytest.raises(SystemExit) as stop:
        console.main([name, "--help"])
    assert "usage" in capsys.readouterr().out
    assert not stop.value.code


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        console.main(["trian"])
    assert stop.value.code == 2 and "train" in capsys.readouterr().err


def test_train_lists_every_recipe(capsys):
    console.main(["train"])
    printed = capsys.readouterr().out
    plans = {path.stem for path in shipped_folder("recipes").glob("*.py")} - set(NOT_TRAINING)
    assert training_recipes().keys() == plans and all(name in printed for name in plans)


def test_an_unknown_recipe_is_answered_with_its_neighbour(capsys):
    with pytest.raises(SystemExit) as stop:
        console.main(["train", "finetune_blib"])
    assert stop.value.code == 1 and "did you mean 'finetune_blip'" in capsys.readouterr().err


def test_train_runs_a_recipe_with_its_own_words(monkeypatch, tmp_path, capsys):
    """Also behind DeepSpeed's launcher, which puts its own word first."""
    ran = {}
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: ran.update(path=path, name=run_name, argv=sys.argv))
    before = list(sys.argv)
    console.main(["--local_rank=1", "train", "finetune_git", "--max_steps", "2", "--help"])
    assert Path(ran["path"]) == shipped_folder("recipes") / "finetune_git.py" and ran["name"] == "__main__"
    assert ran["argv"][1:] == ["--max_steps", "2", "--help", "--local_rank=1"] and sys.argv == before


@pytest.mark.slow
def test_a_recipe_runs_from_any_folder_with_a_shipped_plan(tmp_path, cache):
    small = ["--synthetic_studies", "60", "--synthetic_size", "64", "--dry_run"]
    (tmp_path / "mine.yaml").write_text("max_steps: 7\n")
    train = ["-m", "hf_medvlm", "train", "finetune_blip", "--config"]
    done = launch.call(*train, "mine.yaml", *small, folder=tmp_path)
    assert done.returncode == 0 and " ok  data " in done.stdout, done.stderr
    done = launch.call(*train, "mine", folder=tmp_path)
    assert done.returncode == 1 and "--config mine: cannot be read" in done.stderr


def test_prepare_and_evaluate_take_all_words(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        console.main(["prepare", "roco", "--root", str(tmp_path), "--out", str(tmp_path / "m.jsonl")])
    assert "ROCO" in str(stop.value) or "roco" in str(stop.value)


def test_shipped_files_have_short_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = shipped_folder("recipes") / "finetune_blip.yaml"
    for name in ("finetune_blip", "finetune_blip.yaml", "recipes/finetune_blip.yaml", "recipes/finetune_blip"):
        assert find_shipped(name, "recipes", ".yaml") == plan
    assert find_shipped("patch_ib/E", "recipes", ".yaml") == plan.parent / "patch_ib" / "E.yaml"
    assert json.loads(find_shipped("zero2", "ds_configs", ".json").read_text())["zero_optimization"]["stage"] == 2
    Path("finetune_blip.yaml").write_text("")  # the user's own file wins
    assert find_shipped("finetune_blip.yaml", "recipes", ".yaml") == Path("finetune_blip.yaml")
    assert find_shipped("nowhere", "recipes", ".yaml") == Path("nowhere")
