"""The rows of a run: the methods, schedules and seeds that the command line names, or else the recipe's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpbench.errors import UsageError

if TYPE_CHECKING:
    from tpbench.recipe import Recipe
    from tpbench.registry import Variant
    from tpbench.schedule import Schedule

MOST_SEEDS = 10_000  # a larger number is a typing error


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add --methods, --schedules, --budget and --budget-latency to a verb."""
    verb.add_argument(
        "--methods",
        help="all, or names separated by commas, with settings where wanted: topk,wkmedoids(init=grid,site=end);"
        " default: the recipe's, usually all; see `tpbench list`",
    )
    verb.add_argument(
        "--schedules",
        help='budgets, e.g. "0.7@3,6,9;0.5@3,6,9", "137,96,67@3,6,9", "-13@0-11", "macs=0.6@3,6,9",'
        ' "latency=0.7@3,6,9", "learned:FILE"; default: the recipe\'s',
    )
    verb.add_argument(
        "--budget",
        metavar="SHARES",
        help="equal cost: every method at these shares of the unreduced model's MACs, e.g. 0.5 or 0.7,0.5, at the"
        " blocks of the recipe's first schedule",
    )
    verb.add_argument(
        "--budget-latency",
        metavar="SHARES",
        help="every method at these shares of the unreduced model's latency on this machine, found by measuring it",
    )


def methods(arguments: argparse.Namespace, recipe: Recipe) -> str:
    """The methods named, or else the recipe's."""
    if arguments.methods is None:
        return ",".join(recipe.methods)
    if not arguments.methods.strip(" ,"):
        raise UsageError("--methods names no method; leave it out for the recipe's, or see `tpbench list`")
    return arguments.methods


def with_controls(variants: Sequence[Variant], recipe: Recipe) -> list[Variant]:
    """The methods and the recipe's controls of those methods."""
    from tpbench import registry

    named = {variant.method for variant in variants}
    controls = [control for control in registry.variants(recipe.controls) if control.method in named]
    return list(dict.fromkeys([*variants, *controls]))


def seeds(arguments: argparse.Namespace, recipe: Recipe) -> int:
    """The number of seeds asked for, or else the recipe's."""
    count = recipe.seeds if arguments.seeds is None else arguments.seeds
    if not 1 <= count <= MOST_SEEDS:
        raise UsageError(f"--seeds {count}: at least 1 is needed, at most {MOST_SEEDS} are possible")
    return count


def reducing(schedules: Sequence[Schedule]) -> tuple[Schedule, ...]:
    """The schedules that reduce tokens, each once. Raises UsageError if two of one name keep other counts."""
    found = {}
    for schedule in schedules:
        if schedule.text != "none" and found.setdefault(schedule.text, schedule) != schedule:
            raise UsageError(f"two files are named {schedule.text}, and a record could not tell them apart; rename one")
    return tuple(found.values())


def schedules(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The schedules named, shares of cost at the recipe's blocks, or else the recipe's schedules."""
    where = recipe.schedules[0].partition("@")[2]
    asked = arguments.schedules.split(";") if arguments.schedules else []
    for kind, shares in (("macs", arguments.budget), ("latency", arguments.budget_latency)):
        asked += [f"{kind}={share.strip()}@{where}" for share in (shares or "").split(",") if share.strip()]
    return asked or list(recipe.schedules)
