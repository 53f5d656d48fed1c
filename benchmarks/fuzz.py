"""Malformed inputs for every reader: how each is answered, and the smallest that was answered wrongly.

    python benchmarks/fuzz.py --cases 5000
    python benchmarks/fuzz.py --cases 500 --readers tables checkpoints --keep /tmp/failures
    python benchmarks/fuzz.py --only "tables 17"

An input is refused with a sentence that names its file or option, or it is accepted and a rule says why that is right.
Everything else is a fault: a traceback from inside, more than 10 s, more than 2 GiB, an acceptance that no rule covers.
Each case is made from the seed, its reader and its number alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from fuzzing import corpora, exports, models, pixels, scores, settings, tables, uses  # noqa: E402
from fuzzing.pool import BAD, OUTCOMES, Outcome, Reader, run  # noqa: E402

READERS: list[Reader] = [
    *(
        reader
        for module in (pixels, tables, corpora, settings, models, scores, uses, exports)
        for reader in module.READERS
    )
]
SHARE = {"checkpoints": 2, "tables": 2, "results of a run": 1.5, "output paths": 0.5, "exports": 0.5}
"""How many cases a reader gets for one of the others'."""


def cases_of(readers: list[Reader], count: int, seed: int) -> list[tuple[str, int]]:
    """(reader, number of the case), mixed, so that a run cut short has seen all of them."""
    weights = [SHARE.get(reader.name, 1) for reader in readers]
    drawn = []
    for place, reader in enumerate(readers):
        many = round(count * weights[place] / sum(weights)) if place else 0
        drawn += [(reader.name, seed * 1_000_000 + number) for number in range(many)]
    drawn += [(readers[0].name, seed * 1_000_000 + number) for number in range(count - len(drawn))]
    return sorted(drawn, key=lambda case: (case[1], case[0]))


def table(outcomes: list[Outcome]) -> str:
    """Reader by reader, how many of each outcome."""
    lines = ["| reader | tried | " + " | ".join(OUTCOMES) + " |", "|---" * (len(OUTCOMES) + 2) + "|"]
    names = list(dict.fromkeys(reader.name for reader in READERS if any(o.reader == reader.name for o in outcomes)))
    for name in [*names, "all"]:
        kinds = collections.Counter(o.kind for o in outcomes if name in (o.reader, "all"))
        lines.append(f"| {name} | {sum(kinds.values())} | " + " | ".join(str(kinds[kind]) for kind in OUTCOMES) + " |")
    return "\n".join(lines)


def kinds_of_faults(outcomes: list[Outcome], most: int = 60) -> list[str]:
    """One line for each kind of fault (where it was raised), with the shortest description of an input."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind in BAD:
            place = outcome.detail.rpartition("[")[2].split(" <")[0].rstrip("]") or outcome.what[:40]
            groups.setdefault((outcome.reader, outcome.kind, place), []).append(outcome)
    lines = []
    for (reader, kind, _), cases in sorted(groups.items(), key=lambda item: -len(item[1]))[:most]:
        least = min(cases, key=lambda outcome: len(outcome.what))
        lines.append(f"{len(cases):>4} x {kind}: {reader} {least.seed}: {least.what[:110]}")
        lines.append(f"       {least.detail[:420]} {least.kept}")
    return lines


def prepare(names: set[str]) -> None:
    """Load and make before the workers are forked what all of them need."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    if names & {"checkpoints", "exports"}:
        models.prepare()
    if "results of a run" in names:
        scores.prepare()
    if names & {"options", "YAML of a recipe", "launch settings", "output paths"}:
        settings._groups()
    if "corpora" in names:
        for name in corpora.CORPORA:
            corpora._seed(name)
    if names & {"index", "uploads", "output paths"}:
        uses.prepare()
    if "launch settings" in names:
        exports.prepare()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=[reader.name for reader in READERS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which the inputs of faults are kept")
    parser.add_argument("--out", type=Path, help="JSON file of all outcomes")
    parser.add_argument("--only", help="one case, 'reader number', in this process, with its traceback")
    args = parser.parse_args(argv)
    readers = [reader for reader in READERS if not args.readers or reader.name in args.readers]
    if args.only:
        name, _, number = args.only.rpartition(" ")
        reader = next(reader for reader in READERS if reader.name == name)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        from random import Random

        made = reader.make(Random(f"{name} {number}"), folder)
        print(folder, made.what)
        print(repr(reader.justify(made, reader.read(made))))
        return 0
    prepare({reader.name for reader in readers})
    begin, outcomes = time.monotonic(), []
    cases = cases_of(readers, args.cases, args.seed)
    for outcome in run(readers, cases, args.workers, keep=args.keep):
        outcomes.append(outcome)
        if len(outcomes) % 250 == 0:
            print(f"{len(outcomes)} of {len(cases)}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    bad = [outcome for outcome in outcomes if outcome.kind in BAD]
    print(table(outcomes))
    print(f"\n{len(outcomes)} cases, {len(bad)} faults, {time.monotonic() - begin:.0f} s\n")
    print("\n".join(kinds_of_faults(outcomes)))
    if args.out:
        args.out.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
