"""Runs side by side on the same studies: which is better, whether it is chance, what became better and worse.

    hf-medvlm compare runs/finetune_blip/1 runs/finetune_blip/2
    hf-medvlm compare runs/finetune_blip/1 runs/finetune_git/1 runs/llava_mimic/1 --out three

The first run is the one that the others are held against. Folders of `hf-medvlm score` are compared as well.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs and the folder of the comparison."""
    parser.add_argument("runs", nargs="+", help="folders of runs that were scored on the same studies")
    parser.add_argument("--out", default="comparison", help="the folder to write to; `comparison` by default")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap samples, and random swaps")


def run(args: argparse.Namespace) -> None:
    """Print the table, write the page and the tables."""
    from hf_medvlm.data.locks import taken
    from hf_medvlm.figures.comparison import compare_runs, table, write_tables
    from hf_medvlm.figures.comparison_page import write_page

    if args.resamples < 1:
        raise ValueError(f"--resamples {args.resamples}: ask for one or more")
    compared = compare_runs(args.runs, resamples=args.resamples)
    with taken(args.out, "; wait until it has ended, or name another --out"):
        write_tables(compared, args.out)
        path = write_page(compared, args.out)
    print(table(compared))
    print(f"\n{len(compared.lines[0])} studies; open {path}")
