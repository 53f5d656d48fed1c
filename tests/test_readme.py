"""README and docs keep their word: links and anchors lead somewhere, commands parse, and recipes' commands dry-run.

A command is checked as a shell would take it: the launcher's words by the launcher's own parser, the recipe's words by
the recipe's. Where a command names data, a made-up corpus stands in for it. What needs the internet is only checked for
the files it names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_run import make_run
from made_shards import as_shards

from hf_medvlm.__main__ import COMMANDS as COMMANDS_OF_OURS
from hf_medvlm.__main__ import _parse, main
from hf_medvlm.data.study import write_jsonl
from hf_medvlm.training import arguments
from hf_medvlm.training.checkpoints import write_manifest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FAMILY_PAGES = sorted((ROOT / "hf_medvlm" / "families").glob("*/README.md"))
# torchrun, deepspeed, accelerate, docker build, llama.cpp
OF_OTHER_PROGRAMS = {"nproc_per_node", "num_accelerators", "help", "cpu", "network", "mmproj"}
NEED_THE_INTERNET = ("hf", "git")
SHELL = ("export", "cd", "ls", "open", "find")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    """(page and number, command) for each line of each bash block; lines that end in a backslash are joined.

    The commands of docs/add_a_family.md want the family that it makes; tests/test_add_a_family.py runs them.
    """
    for page in (page for page in PAGES if page.stem != "add_a_family"):
        lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        parts = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
        for number, command in enumerate(filter(None, parts)):
            yield f"{page.stem}-{number}", command


COMMANDS = dict(commands())


def recipe_of(words: list[str]) -> tuple[list[str], str, list[str]] | None:
    """(launcher's words, recipe, recipe's words), or None where no recipe is called."""
    for place, word in enumerate(words):
        if re.fullmatch(r"recipes/\w+\.py", word):
            return words[:place], Path(word).stem, words[place + 1 :]
    return None


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *FAMILY_PAGES], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_and_anchors_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]+src=\"([^\"]+)\"", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{page.name}: {file.name} has no heading for #{anchor}"


def test_every_page_of_the_docs_is_linked_from_the_readme():
    text = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_every_family_has_a_page_of_the_same_parts_which_the_readme_links():
    families = sorted(path.parent for path in (ROOT / "hf_medvlm" / "families").glob("*/recipe.py"))
    assert [page.parent for page in FAMILY_PAGES] == families
    text = PAGES[0].read_text(encoding="utf-8")
    for page in FAMILY_PAGES:
        assert anchors(page) >= {"train", "scored-on", "expected-numbers"}, page
        assert page.relative_to(ROOT).as_posix() in text, page


def test_files_that_inline_code_names_are_there():
    for page in [*PAGES, *FAMILY_PAGES]:
        for name in re.findall(r"`((?:recipes|hf_medvlm|ds_configs|tests|docs|benchmarks)/[\w./]+)`", page.read_text()):
            assert (ROOT / name).exists() or "echo" in name, f"{page.name}: {name}"


def test_json_examples_are_studies():
    from hf_medvlm.data.study import Study

    for page in PAGES:
        for example in blocks(page, "json"):
            assert Study.from_dict(json.loads(example)).study_id


# -- commands ---------------------------------------------------------------------------------------------------------


def check_launcher(words: list[str], script: str) -> None:
    """The launcher's own parser takes its words."""
    words = [*words, script]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(words[2:])
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words[1:])
    elif words[0] == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parse_args(words[1:])
    else:
        assert words[:-1] == ["python"], words


class Parsed(Exception):
    """Raised in place of loading data, once the options are read."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder like a checkout in which one run was stopped behind a checkpoint; recipes can be imported."""
    for name in ("recipes", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    checkpoint = tmp_path / "runs" / "finetune_blip" / "1" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        (checkpoint / name).write_text('{"global_step": 1, "max_steps": 9, "log_history": []}')
    write_manifest(checkpoint, step=1, processes=1, zero_stage=None)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.chdir(tmp_path)


def parse_recipe(recipe: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe read its options, and stop it there. A DeepSpeed file must exist; it is not started."""
    module = importlib.import_module(recipe)
    if recipe == "prepare_data":
        module.parse_options(words)
        return
    if "--deepspeed" in words:
        place = words.index("--deepspeed")
        assert (ROOT / words[place + 1]).is_file()
        words = words[:place] + words[place + 2 :]

    def parse(*args, **kwargs):
        raise Parsed(arguments.parse(*args, **kwargs))

    monkeypatch.setattr(module, "parse", parse)
    with pytest.raises(Parsed):
        module.main(words)


def parse_benchmark(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark is there, and its own parser takes the words; it is stopped before it runs."""
    script, *options = words
    assert (ROOT / script).is_file()
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        raise Parsed(parse_args(self, options, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        importlib.import_module(Path(script).stem).main()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_parse(name, monkeypatch, checkout):
    words = shlex.split(COMMANDS[name])
    called = recipe_of(words)
    if called:
        launcher, recipe, options = called
        assert (ROOT / "recipes" / f"{recipe}.py").is_file(), COMMANDS[name]
        check_launcher(launcher, f"recipes/{recipe}.py")
        parse_recipe(recipe, options, monkeypatch)
    elif words[0] == "pip":
        check_pip(words)
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-"))
    elif (ours := words_of_command(words)) is not None:
        parse_command(ours, monkeypatch)
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        parse_benchmark(words[1:], monkeypatch)
    else:
        assert words[0] in NEED_THE_INTERNET + SHELL, f"nobody checks this command: {COMMANDS[name]}"


def words_of_command(words: list[str]) -> list[str] | None:
    """What follows `hf-medvlm` or `python -m hf_medvlm`, bare or under a launcher; None for any other command."""
    if words[0] == "hf-medvlm":
        return words[1:]
    for flag in ("-m", "--module"):
        if "hf_medvlm" in words and words[words.index("hf_medvlm") - 1] == flag:
            place = words.index("hf_medvlm")
            check_launcher(words[: place - 1], "script.py")
            return words[place + 1 :]
    return None


def parse_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command of `hf-medvlm` read its options, and run nothing."""
    name, *rest = words
    if name == "train" and rest:
        parse_recipe(rest[0], rest[1:], monkeypatch)
    elif name == "prepare":
        parse_recipe("prepare_data", rest, monkeypatch)
    elif name in ("predict", "score"):
        importlib.import_module(name).options(rest)
    else:
        _parse(name, importlib.import_module(COMMANDS_OF_OURS[name][0]), rest)


def check_pip(words: list[str]) -> None:
    import configparser

    assert words[1] in ("install", "wheel")
    assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\.\[(.*?)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(setup["options.extras_require"]), extras


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, splits):
    """What stands in for a reader's own data: a master file and a table over made-up studies."""
    folder = tmp_path_factory.mktemp("corpus")
    studies = [study for split in splits.studies.values() for study in split]
    write_jsonl(studies, folder / "master.jsonl")
    rows = [{"image": s.frontal.path, "patient_id": s.patient_id, "findings": s.findings, "impression": s.impression}
            for s in studies]  # fmt: skip
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import pandas

    pandas.DataFrame(rows).to_csv(folder / "reports.csv", index=False)
    as_shards(splits, folder / "shards")
    return folder


def dry_run_words(options: list[str], corpus: Path, images: Path) -> list[str] | None:
    """The words of a dry run on the stand-in data; None where the command starts from a checkpoint of the Hub."""
    if {"--model_name_or_path", "--config", "--data_path", "--resume_from_checkpoint"} & set(options):
        return None
    words = list(options)
    for place, word in enumerate(words[:-1]):
        if word == "--dataset" and words[place + 1].startswith("shards/"):
            words[place + 1] = str(corpus / words[place + 1])
        elif word == "--dataset":
            words[place + 1] = str(corpus / ("reports.csv" if words[place + 1].endswith(".csv") else "master.jsonl"))
        if word == "--image_folder":
            words[place + 1] = str(images)
        if word in ("--deepspeed", "--output_dir"):
            return None
    if "--dataset" not in words:
        words += ["--synthetic_studies", "60", "--synthetic_size", "64"]
    return words + ["--dry_run"]


def dry_runs() -> dict[str, tuple[str, ...]]:
    """One name for each different call of a recipe in README and docs."""
    calls = {}
    for name, command in COMMANDS.items():
        called = recipe_of(shlex.split(command))
        if called and called[1] != "prepare_data":
            calls.setdefault((called[1], *(word for word in called[2] if word != "--dry_run")), name)
    return {name: call for call, name in calls.items()}


@pytest.mark.parametrize("name", dry_runs())
def test_recipes_commands_dry_run(name, corpus, splits, checkout, capsys):
    recipe, *options = dry_runs()[name]
    words = dry_run_words(options, corpus, splits.image_folder)
    if words is None:
        pytest.skip("starts from a checkpoint or a launcher's own set-up; test_commands_parse has read its options")
    importlib.import_module(recipe).main(words)
    lines = capsys.readouterr().out
    assert " ok  data " in lines and "STOP" not in lines


def test_commands_on_a_finished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "finetune_blip" / "1", studies=1)
    ran = 0
    for command in COMMANDS.values():
        words = words_of_command(shlex.split(command))
        if words and words[0] in ("doctor", "report", "push"):
            main(words)
            ran += 1
    assert ran >= 3 and "report.html" in capsys.readouterr().out


def known_options() -> set[str]:
    """Every option that a recipe, `prepare_data` or a command of `hf-medvlm` takes."""
    from hf_medvlm.data.prepare_options import _parser
    from hf_medvlm.training.legacy import RENAMED

    options = set()
    places = (ROOT / "recipes", ROOT / "benchmarks", ROOT / "hf_medvlm")
    for path in sorted(path for place in places for path in place.rglob("*.py")):
        options |= set(re.findall(r"^    (\w+): [^=\n]+= option\(", path.read_text(), re.MULTILINE))
        options |= set(re.findall(r"add(?:_argument)?\(\s*\"--(\w+)\"", path.read_text()))
    options |= set(arguments.MedVLMArguments.__dataclass_fields__) | set(RENAMED) | {"config", "num_processes"}
    for module in (importlib.import_module(path) for path, _ in COMMANDS_OF_OURS.values()):
        if hasattr(module, "add_arguments"):
            parser = ArgumentParser()
            module.add_arguments(parser)
            options |= {action.dest for action in parser._actions}
    for corpus in _parser("")[1].values():
        options |= {action.dest for action in corpus._actions}
    return options


def test_options_that_the_pages_name_exist():
    known = known_options() | OF_OTHER_PROGRAMS
    for page in [*PAGES, *FAMILY_PAGES]:
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            for name in re.findall(r"--(\w+)", code):
                assert name in known, f"{page.name}: --{name}"
