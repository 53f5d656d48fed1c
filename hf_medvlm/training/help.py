"""What `--help` looks like: a recipe's own options first, in groups, and the Trainer's hundred after them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

TITLES = {"data": "data", "model": "model", "training": "training"}


def arrange_help(parser: argparse.ArgumentParser, groups: Mapping[str, Any], trainer: type) -> None:
    """Put the options of each dataclass under a title, those that `trainer` has too at the end, and leave the list of
    all options out of the usage line. Nothing that is parsed changes.

    Args:
        groups: name -> dataclass, as `parse` has them.
        trainer: transformers' `TrainingArguments`.
    """
    parser.usage = f"{parser.prog} [--config PLAN] [--OPTION VALUE ...]"
    inherited = set(trainer.__dataclass_fields__)  # type: ignore[attr-defined]
    # argparse keeps the options of a group in a list of its own, which is what it prints
    everything = parser._optionals._group_actions
    for name, group in groups.items():
        declared = [
            action
            for action in everything
            if action.dest in group.__dataclass_fields__ and not (name == "training" and action.dest in inherited)
        ]
        _move(parser, everything, declared, TITLES.get(name, name))
    _move(parser, everything, [a for a in everything if a.dest in inherited], "transformers' TrainingArguments")
    for action in parser._actions:
        if any(word.startswith(("--no_", "--no-")) for word in action.option_strings):
            action.help = argparse.SUPPRESS  # `--x False` says the same


def _move(parser: argparse.ArgumentParser, everything: list, actions: list[argparse.Action], title: str) -> None:
    if actions:
        parser.add_argument_group(title)._group_actions.extend(actions)
        everything[:] = [action for action in everything if action not in actions]
