"""`--help` of every recipe, old option names, and the options that the preflight advises: read from the recipes."""

from __future__ import annotations

import logging
import re
import runpy
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_medvlm.families.chat.arguments import TRANSLATED, modernise_llava
from hf_medvlm.training import arguments, legacy
from hf_medvlm.training.preflight_resources import _save_memory

RECIPES = "extract_biovil_t finetune_biovil_t finetune_blip finetune_chat finetune_git llava_mimic".split()
RECIPES += ["train_dual_encoder", "train_medklip", "train_patch_ib"]
STARTS = ("its ", "their ", "that ", "of the ", "at the start", "in so many", "likewise", "them ", "it ")


@pytest.fixture(scope="module")
def read(root):
    """recipe -> (its `--help`, its groups of options)."""
    pages: dict[str, tuple[str, dict[str, Any]]] = {}
    kept: dict[str, Any] = {}
    original = arguments.arrange_help

    def keep(parser: Any, groups: dict[str, Any], trainer: type) -> None:
        original(parser, groups, trainer)
        kept.update(page=parser, groups=dict(groups))

    def of(recipe: str) -> tuple[str, dict[str, Any]]:
        if recipe not in pages:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
                patch.setattr(arguments, "arrange_help", keep)
                patch.setenv("COLUMNS", "200")
                runpy.run_path(str(root / "recipes" / f"{recipe}.py"))["main"](["--help"])
            pages[recipe] = kept["page"].format_help(), kept["groups"]
        return pages[recipe]

    return of


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "_said", set())


def own_fields(group: Any) -> dict[str, Any]:
    """The options that this package declares."""
    ours = {name for kind in group.__mro__ if kind.__module__.startswith("hf_medvlm") for name in kind.__annotations__}
    return {name: field for name, field in group.__dataclass_fields__.items() if name in ours}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_own_options_come_first_and_every_help_text_stands_alone(recipe, read):
    page, groups = read(recipe)
    places = {match[1]: match.start() for match in re.finditer(r"^  --(\w+)", page, re.MULTILINE)}
    assert {name for group in groups.values() for name in group.__dataclass_fields__} <= places.keys()
    upstream = set(TrainingArguments.__dataclass_fields__)
    ours = {name for group in groups.values() for name in group.__dataclass_fields__} - upstream
    assert max(places[name] for name in ours) < min(places[name] for name in upstream)
    for group in groups.values():
        for name, field in own_fields(group).items():
            text = field.metadata.get("help", "")
            assert len(text.split()) > 2 and not text.lower().startswith(STARTS), f"--{name}: {text!r}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_memory_advice_names_options_that_this_recipe_has_and_does_not_use(recipe, read):
    groups = read(recipe)[1]
    names = {name for group in groups.values() for name in group.__dataclass_fields__}
    unused = {
        key: SimpleNamespace(**{n: f.default for n, f in group.__dataclass_fields__.items()})
        for key, group in groups.items()
    }
    advised = set(re.findall(r"--(\w+)", _save_memory(SimpleNamespace(**unused, command="x"))))
    assert advised and advised <= names
    assert ("lora_rank" in advised) == ("lora_rank" in names)
    unused["training"].gradient_checkpointing, unused["training"].deepspeed = True, {"zero_optimization": {}}
    assert {"gradient_checkpointing", "deepspeed"}.isdisjoint(
        re.findall(r"--(\w+)", _save_memory(SimpleNamespace(**unused)))
    )


SWITCHES = {
    "group_by_length": ["--train_sampling_strategy", "group_by_length"],
    "adafactor": ["--optim", "adafactor"],
    "include_inputs_for_metrics": ["--include_for_metrics", "inputs"],
    "logging_dir": [],
}
OLD = {name: ([] if new is None else [f"--{new}", "True"]) for name, new in legacy.RENAMED.items()} | SWITCHES


@pytest.mark.parametrize("old", OLD)
def test_every_old_name_is_mapped_with_exactly_one_warning(old, read, caplog, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "kept")  # and set back when the test is over
    with caplog.at_level(logging.WARNING):
        for words in ([f"--{old}", "True"], [f"--{old}=True"], [f"--{old.replace('_', '-')}", "True"]):
            assert legacy.modernise(words) == OLD[old]
    assert [record.message.startswith(f"--{old} is ") for record in caplog.records] == [True]
    options = {n for recipe in RECIPES for group in read(recipe)[1].values() for n in group.__dataclass_fields__}
    assert old not in options and {word[2:] for word in OLD[old][:1]} <= options


@pytest.mark.parametrize("value", legacy.TRAINS)
def test_the_old_way_to_say_what_trains_gives_way_to_the_new_one(value, caplog):
    with caplog.at_level(logging.WARNING):
        words = legacy.modernise(["--lora_rank", "4", "--trains", value])
    assert words == [*legacy.TRAINS[value], "--lora_rank", "4"] and len(caplog.records) == 1


@pytest.mark.parametrize("name", TRANSLATED)
def test_llavas_own_switches_are_translated_with_one_warning_or_refused(name, caplog):
    wanted, words, _ = TRANSLATED[name]
    with caplog.at_level(logging.WARNING):
        assert modernise_llava([f"--{name}", "False"]) == []
        if wanted:
            assert [modernise_llava([f"--{name}", "True"]) for _ in range(2)] == [words, words]
        else:
            with pytest.raises(ValueError, match=f"--{name} True"):
                modernise_llava([f"--{name}", "True"])
    assert len(caplog.records) == wanted
