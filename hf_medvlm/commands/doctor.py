"""Print the environment, as a bug report needs it: versions, devices, compilers. Nothing private is printed."""

from __future__ import annotations

import argparse

from hf_medvlm.doctor import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options."""


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    print(report())
