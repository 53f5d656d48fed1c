"""Push a finished run's model, processor and card to the Hub, and nothing else of the run. Private by default."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the repository, and who may see it."""
    parser.add_argument("folder", help="the --output_dir of the run")
    parser.add_argument("repo", help="name or owner/name on the Hub")
    parser.add_argument("--public", action="store_true", help="push to a public repository (private is the default)")
    parser.add_argument(
        "--hub_public_acknowledged",
        action="store_true",
        help="yes, weights and words that were learnt of credentialed data may go into a public repository",
    )
    parser.add_argument("--dry_run", action="store_true", help="list the files that would be sent, and send none")


def run(args: argparse.Namespace) -> None:
    """Push and print the address, or list the files with `--dry_run`."""
    from hf_medvlm.sharing import hub

    if args.dry_run:
        folder = Path(args.folder)
        info = hub.check_push(folder, not args.public, args.hub_public_acknowledged)
        hub.write_model_card(folder, args.repo)
        local = hub.local_starts(folder, info)
        for path in hub.files_to_push(folder):
            content = hub.content_to_push(path, local)
            size = len(content) if isinstance(content, bytes) else path.stat().st_size
            print(f"{size:>14,} bytes  {path.name}")
        return
    acknowledged = args.hub_public_acknowledged
    print(hub.push(args.folder, args.repo, private=not args.public, public_acknowledged=acknowledged))
