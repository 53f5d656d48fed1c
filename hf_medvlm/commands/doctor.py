"""Print the environment, as a bug report needs it: versions, devices, compilers. Nothing private is printed."""

from __future__ import annotations

import argparse

from hf_medvlm.doctor import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A folder of scorers' weights to look into."""
    parser.add_argument("--clinical_weights", help="say which clinical metrics' weights lie in this folder")


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    print(report(args.clinical_weights))
