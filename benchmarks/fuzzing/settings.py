"""YAML files, DeepSpeed files and command lines."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import mutate
from fuzzing.pool import Made, Reader

YAMLS = [
    "max_steps: 3\nlearning_rate: 1e-4\naugment: false\ntrain: vision,connector\n",
    "num_beams: 2\nsections: findings\neval_strategy: steps\nsave_steps: 0.5\n",
]
ODD_LINES = [
    *("seed: [1", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "- 1", "seed: !!python/object/apply:os.system ['true']"),
    *(
        "? {a: 1}\n: 2",
        "seed: 1.5",
        "seed: yes",
        "seed: ''",
        "max_steps: 2020-01-01",
        "seed: 0x10",
        "seed: 1_000",
        "1: 2",
    ),
    *(
        "null: 3",
        "seed: 1e999",
        "report_to: [none]",
        "lr_scheduler_kwargs: {a: 1}",
        "deepspeed: {zero: 1}",
        "%YAML 9.9\n---",
    ),
    *(
        "deepspeed: nope",
        "seed: !!binary aGVsbG8=",
        "include_for_metrics: [1, [2]]",
        "sections: nope",
        "nope: 1",
        "<<: [1]",
    ),
    *(
        "seed: 2020-99-99",
        "{",
        "\t- a",
        "seed: 12:30:45",
        "output_dir: [a]",
        "logging_dir: 5",
        "trains: nope",
        "a: b: c",
    ),
]


@cache
def _groups() -> dict[str, dict[str, Any]]:
    from hf_medvlm.families.captioners.recipe import CaptioningArguments
    from hf_medvlm.families.chat.arguments import ChatDataArguments, ChatModelArguments, ChatTrainingArguments
    from hf_medvlm.families.dual_encoder.recipe import PairArguments
    from hf_medvlm.families.medklip.recipe import MedKlipArguments
    from hf_medvlm.training.arguments import DataArguments, MedVLMArguments

    plain = {"data": DataArguments, "training": MedVLMArguments}
    return {
        "captioner": plain | {"model": CaptioningArguments},
        "pairs": plain | {"model": PairArguments},
        "medklip": plain | {"model": MedKlipArguments},
        "chat": {"data": ChatDataArguments, "model": ChatModelArguments, "training": ChatTrainingArguments},
    }


def parse_quietly(words: list[str], groups: dict[str, Any], folder: Path) -> Any:
    """`parse` as a recipe calls it, with the environment as it was before."""
    from hf_medvlm.training.arguments import parse

    before = dict(os.environ)
    os.chdir(folder)
    try:
        return parse("recipe.py", [*words], **dict(sorted(groups.items())))
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_yaml(rng: Random, folder: Path) -> Made:
    path = folder / "plan.yaml"
    text = rng.choice(YAMLS)
    way = rng.random()
    if way < 0.05:
        return Made((path, "captioner"), mutate.special(path, rng), [path.name, "--config"])
    if way < 0.3:
        content, what = mutate.bytes_of(text.encode(), rng)
    elif way < 0.5:
        what = rng.choice(ODD_LINES)
        content = (text * (rng.random() < 0.5) + what + "\n").encode()
    else:
        name, value = (
            rng.choice([f.name for g in _groups()["captioner"].values() for f in fields(g)]),
            rng.choice(mutate.ODD),
        )
        what = f"{name} is {mutate.short(value)}"
        content = f"{name}: {json.dumps(value)}\n".encode()
        path.write_bytes(content)
        return Made((path, "captioner"), what, [path.name, f"--{name}", name, "--config"])
    path.write_bytes(content)
    return Made((path, "captioner"), what, [path.name, "--"])


def read_yaml(made: Made) -> Any:
    path, family = made.target
    return parse_quietly(["--config", str(path), "--output_dir", "out"], _groups()[family], path.parent)


def justify_options(made: Made, result: Any) -> str | None:
    """Every value has its option's type, and each number is finite and within its bounds."""
    from hf_medvlm.training.values import BOUNDS

    groups = [result.data, result.model, result.training]
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                return None
            if field.name in BOUNDS and value is not None:
                low, high = BOUNDS[field.name]
                if isinstance(value, bool) or not low <= value <= high:
                    return None
            if field.type in (int, "int") and type(value) is not int and value is not field.default:
                return None
    if not (result.training.max_steps > 0 or result.training.num_train_epochs > 0):
        return None
    return "every value has its option's type and bounds"


def make_words(rng: Random, folder: Path) -> Made:
    family = rng.choice(list(_groups()))
    names = [field.name for group in _groups()[family].values() for field in fields(group)]
    words: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(names)
        value = rng.choice([v for v in mutate.ODD if not isinstance(v, str) or "\0" not in v])
        text = value if isinstance(value, str) else json.dumps(value)
        words += rng.choice([[f"--{name}", text], [f"--{name}={text}"], [f"--{name}"], [f"--{name}x", text], [text]])
    words = [word for word in words if "DEEP" not in word]
    return Made((words, family, folder), f"{family} {' '.join(words)[:70]}", ["recipe.py"])


def read_words(made: Made) -> Any:
    words, family, folder = made.target
    return parse_quietly(words, _groups()[family], folder)


# ---------------------------------------------------------------- DeepSpeed and prepare


def make_deepspeed(rng: Random, folder: Path) -> Made:
    path = folder / "zero.json"
    document = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "bf16": {"enabled": "auto"},
    }
    if rng.random() < 0.1:
        return Made(path, mutate.special(path, rng), [path.name, "--deepspeed"])
    content, what = mutate.json_text(document, rng)
    path.write_bytes(content)
    return Made(path, what, [path.name, "--deepspeed"])


def read_deepspeed(made: Made) -> Any:
    from hf_medvlm.training.deepspeed import check_deepspeed
    from hf_medvlm.training.deepspeed import read_deepspeed as read

    check_deepspeed(str(made.target), 8, 1, 1)
    return read(str(made.target))


def justify_deepspeed(made: Made, result: Any) -> str | None:
    if result.get("train_batch_size", "auto") not in ("auto", 8) or isinstance(result.get("train_batch_size"), bool):
        return None
    return "batch sizes agree; DeepSpeed checks its other settings" if isinstance(result, dict) else None


def make_prepare(rng: Random, folder: Path) -> Made:
    path = folder / "prepare.yaml"
    names = "min_characters convert size image_cache verify_images labels boxes seed workers validate test".split()
    if rng.random() < 0.4:
        content, what = mutate.bytes_of(b"min_characters: 10\nseed: 3\nlabels: text\n", rng)
    else:
        name, value = rng.choice(names), rng.choice(mutate.ODD)
        content, what = f"{name}: {json.dumps(value)}\n".encode(), f"{name} is {mutate.short(value)}"
    if rng.random() < 0.05:
        return Made(path, mutate.special(path, rng), [path.name, "table"])
    path.write_bytes(content)
    return Made(path, what, [path.name, *(f"--{name}" for name in names), *names])


def read_prepare(made: Made) -> Any:
    from hf_medvlm.data.prepare_options import parse_options

    words = [
        "table",
        "--root",
        str(made.target.parent),
        "--out",
        "x.jsonl",
        "--table",
        "t.csv",
        "--config",
        str(made.target),
    ]
    return parse_options(words)


def justify_prepare(made: Made, result: Any) -> str | None:
    shares = 0 <= result.validate <= 1 and 0 <= result.test <= 1 and result.validate + result.test <= 1
    workers = result.workers is None or result.workers > 0
    return "every value is of its option's kind" if shares and workers and result.min_characters > 0 else None


READERS = [
    Reader("YAML of a recipe", make_yaml, read_yaml, justify_options),
    Reader("options", make_words, read_words, justify_options),
    Reader("DeepSpeed JSON", make_deepspeed, read_deepspeed, justify_deepspeed),
    Reader("YAML of prepare", make_prepare, read_prepare, justify_prepare),
]
