"""Train a model: run one of the recipes, from anywhere, with the recipe's own options.

    hf-medvlm train finetune_blip --dataset master.jsonl --image_folder images
    hf-medvlm train finetune_blip --help
    accelerate launch -m hf_medvlm train finetune_blip
    torchrun --nproc_per_node 2 -m hf_medvlm train finetune_blip
    deepspeed --module hf_medvlm train finetune_blip --deepspeed zero3

`--config` and `--deepspeed` take a file of yours, or the name of one that is shipped: `--config finetune_blip`.
"""

from __future__ import annotations

import argparse
import difflib

from hf_medvlm.commands.recipes import run_recipe, training_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe and its words."""
    parser.usage = "hf-medvlm train NAME [options of the recipe]"
    recipes = training_recipes()
    width = max(map(len, recipes)) + 2
    table = "\n".join(f"  {name:<{width}}{line}" for name, line in recipes.items())
    parser.epilog = f"recipes:\n{table}"
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of the recipes below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the recipe; NAME --help lists them")
    parser.set_defaults(help_text=parser.format_help())


def run(args: argparse.Namespace) -> None:
    """Run the recipe `args.name`; without a name, list the recipes.

    Raises:
        ValueError: there is no such recipe.
    """
    if args.name is None:
        print(args.help_text)
        return
    recipes = training_recipes()
    name = args.name.removeprefix("recipes/").removesuffix(".py")
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.4)
        advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(recipes)}"
        raise ValueError(f"no recipe is called {args.name!r:.100}; {advice}")
    run_recipe(name, args.options)
