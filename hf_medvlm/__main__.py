"""hf_medvlm: train medical vision-language models, and use what was trained."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from hf_medvlm import __version__
from hf_medvlm.data.secrets import masked

# Name -> (module, help in one line). `hf_medvlm/commands/__init__.py` says what such a module holds.
COMMANDS = {
    "train": ("hf_medvlm.commands.train", "train a model: run one of the recipes"),
    "prepare": ("hf_medvlm.commands.prepare", "turn a corpus into one master file of studies"),
    "evaluate": ("hf_medvlm.commands.evaluate", "score a trained model on a data set"),
    "score": ("hf_medvlm.commands.score", "score any system's reports against references"),
    "compare": ("hf_medvlm.commands.compare", "hold runs against one another on the same studies"),
    "predict": ("hf_medvlm.commands.predict", "apply a trained model to images without reports"),
    "index": ("hf_medvlm.commands.index", "embed images, to search among them"),
    "search": ("hf_medvlm.commands.search", "find the studies nearest to a text or an image"),
    "ground": ("hf_medvlm.commands.ground", "show where in an image a phrase is"),
    "demo": ("hf_medvlm.commands.demo", "open a page on this machine to try a trained model on"),
    "report": ("hf_medvlm.commands.report", "draw a finished run's figures, report page and card again"),
    "export": ("hf_medvlm.commands.export", "write a trained model for transformers, serving engines or ONNX"),
    "push": ("hf_medvlm.commands.push", "push a finished run's model to the Hub"),
    "doctor": ("hf_medvlm.commands.doctor", "print the environment, as a bug report needs it"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; bad input ends in one line that says what to do.

    `HF_MEDVLM_DEBUG=1` shows the traceback all the same.

    Raises:
        SystemExit: 2 for a command line that cannot be read, 1 for any other bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--local_rank="):  # DeepSpeed's launcher writes it in front of all other words
        words = words[1:] + words[:1]
    parser = _top_parser()
    args = parser.parse_args(words[:1])
    if args.command is None:
        parser.print_help()
        return
    module = importlib.import_module(COMMANDS[args.command][0])
    try:
        module.run(_parse(args.command, module, words[1:]))
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_MEDVLM_DEBUG"):
            raise
        from hf_medvlm.data.disk import sentence

        print(f"error: {masked(sentence(error, words))}", file=sys.stderr)
        sys.exit(1)


def _top_parser() -> argparse.ArgumentParser:
    """The parser of the first word: a command, or an option of the program itself."""
    width = max(map(len, COMMANDS)) + 2
    table = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hf-medvlm",
        usage="hf-medvlm COMMAND [options]",
        description=__doc__,
        epilog=f"commands:\n{table}\n\n`hf-medvlm COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=[*COMMANDS], help="one of the commands below")
    parser.add_argument("--version", action="version", version=f"hf-medvlm {__version__}")
    return parser


def _parse(name: str, module: ModuleType, words: list[str]) -> argparse.Namespace | list[str]:
    """The options of one command, read by its own parser; the words themselves where another parser reads them."""
    if getattr(module, "TAKES_ALL_WORDS", False):
        return words
    parser = argparse.ArgumentParser(
        prog=f"hf-medvlm {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
