"""Draw the figures, report.html and the model card of a finished run again, from its saved results."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("folder", help="the --output_dir of the run")


def run(args: argparse.Namespace) -> None:
    """Write the files and print their paths."""
    from hf_medvlm.figures import draw_all, write_report
    from hf_medvlm.sharing.hub import write_model_card

    for path in (*draw_all(args.folder), write_report(args.folder), write_model_card(args.folder)):
        print(path)
