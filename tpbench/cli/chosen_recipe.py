"""The recipe that a verb works on: which one, and the lines that the command line changes."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.cli.exit_codes import DONE, say

if TYPE_CHECKING:
    from tpbench.recipe import Recipe

LONGEST = 120  # characters of a folder's name that spells out every override; a longer one ends with the digest instead


def add_set(verb: ArgumentParser) -> None:
    """Add --set to a verb."""
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="LINE=VALUE",
        dest="lines",
        help="change a line of the recipe, e.g. finetune.epochs=5 (repeatable); the results folder is named after it",
    )


def add_data(verb: ArgumentParser) -> None:
    """Add --data to a verb that reads the recipe's images."""
    help_text = "folder of the data set (default: the recipe's, or else the Hugging Face hub)"
    verb.add_argument("--data", type=Path, metavar="DIR", help=help_text)


def load_recipe(arguments: Namespace, tuned: bool = True) -> Recipe:
    """The recipe with its overridden lines and its data set in --data, where that is given.

    Prints a line if the plain recipe's tuning is not used with these lines.
    """
    from tpbench import recipe as recipes

    recipe = recipes.load(arguments.recipe, tuned=tuned, lines=arguments.lines)
    plain = [recipes.tuning_path(name) for name in (arguments.recipe, recipe.tuned_as) if name]
    unused = [path.name for path in plain if path.exists()]
    if tuned and recipes.OVERRIDDEN in recipe.name and unused and not recipe.tuned:
        say(f"{recipe.name} is not tuned: {' and '.join(unused)} was tuned without --set and is not used", DONE)
    return recipe if arguments.data is None else recipes.with_data_at(recipe, arguments.data)


def output_folder(arguments: Namespace, recipe: Recipe) -> Path:
    """Where results go: --out, or results/RECIPE."""
    from tpbench.recipe import OVERRIDDEN
    from tpbench.record import slug

    if arguments.out is not None:
        return arguments.out
    if OVERRIDDEN not in recipe.name:
        return Path("results") / recipe.name
    name = slug(recipe.name)
    plain = recipe.name.partition(OVERRIDDEN)[0]
    return Path("results") / (name if len(name) <= LONGEST else f"{slug(plain)}-{recipe.digest}")


def run_command(arguments: Namespace, *more: str) -> str:
    """The command that runs the same recipe in the same folder and on the same device; more: its further words."""
    words = ["tpbench", "run", "--recipe", arguments.recipe]
    for line in arguments.lines:
        words += ["--set", line]
    for plugin in arguments.plugin:
        words += ["--plugin", plugin]
    if arguments.data is not None:
        words += ["--data", str(arguments.data)]
    if arguments.out is not None:
        words += ["--out", str(arguments.out)]
    if arguments.device != "auto":
        words += ["--device", arguments.device]
    return shlex.join([*words, *more])
