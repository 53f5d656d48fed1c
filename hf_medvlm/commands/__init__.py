"""The commands of `hf-medvlm`, one module each, imported only when it is called.

A command module has `add_arguments(parser)` and `run(args)`; its docstring is the description in `--help`. A module
with `TAKES_ALL_WORDS = True` needs no `add_arguments`: its `run(words)` gets the command line as it is, for another
parser. One line in `hf_medvlm.__main__.COMMANDS` makes a module a command.
"""
