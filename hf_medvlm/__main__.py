"""`python -m hf_medvlm`: the environment for a bug report; the figures, report page, card and push of a run."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> None:
    """Run one command; bad input ends in one line that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m hf_medvlm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="print the environment, as a bug report needs it")
    report = commands.add_parser("report", help="draw the figures, report.html and the card of a finished run anew")
    report.add_argument("folder", help="the --output_dir of the run")
    push = commands.add_parser("push", help="push a finished run's model to the Hub, and nothing else of it")
    push.add_argument("folder", help="the --output_dir of the run")
    push.add_argument("repo", help="name or owner/name on the Hub")
    push.add_argument("--public", action="store_true", help="to a public repository (private is the default)")
    push.add_argument(
        "--hub_public_acknowledged",
        action="store_true",
        help="yes, weights that saw credentialed data may go into a public repository",
    )
    push.add_argument("--dry_run", action="store_true", help="list the files that would be sent, and send none")
    args = parser.parse_args(argv)
    try:
        {"doctor": _doctor, "report": _report, "push": _push}[args.command](args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _doctor(args: argparse.Namespace) -> None:
    from hf_medvlm.doctor import report

    print(report())


def _report(args: argparse.Namespace) -> None:
    from hf_medvlm.figures import draw_all, write_report
    from hf_medvlm.sharing.hub import write_model_card

    for path in (*draw_all(args.folder), write_report(args.folder), write_model_card(args.folder)):
        print(path)


def _push(args: argparse.Namespace) -> None:
    from hf_medvlm.sharing.hub import files_to_push, push, write_model_card

    if args.dry_run:
        write_model_card(args.folder, args.repo)
        for path in files_to_push(args.folder):
            print(f"{path.stat().st_size:>14,} bytes  {path.name}")
        return
    acknowledged = args.hub_public_acknowledged
    print(push(args.folder, args.repo, private=not args.public, public_acknowledged=acknowledged))


if __name__ == "__main__":
    main()
