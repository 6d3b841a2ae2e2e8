"""`tpbench run`: the benchmark."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.cli.asked import seconds
from tpbench.cli.outcome import DONE, FAILED, say
from tpbench.cli.reading import say_what_was_read
from tpbench.cli.where import add_where
from tpbench.errors import UsageError
from tpbench.record import Record

if TYPE_CHECKING:
    from tpbench.bench.plan import Plan
    from tpbench.recipe import Recipe
    from tpbench.registry import Variant

HELP = "train, evaluate and measure methods x schedules x seeds, and write the tables"
EXAMPLE = "tpbench run --recipe smoke --methods wkmedoids,topk"

MOST_SEEDS = 10_000  # a larger number is a slip of the finger


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--recipe",
        default="digits",
        help="digits (default), smoke, ablations, cifar10-cpu, cifar10, another packaged name, or a .py file",
    )
    verb.add_argument(
        "--methods",
        help="all, or names separated by commas, with settings where wanted: topk,wkmedoids(init=grid,site=end);"
        " default: the recipe's, usually all; see `tpbench list`",
    )
    verb.add_argument(
        "--schedules",
        help='budgets, e.g. "0.7@3,6,9;0.5@3,6,9", "137,96,67@3,6,9", "macs=0.6@3,6,9"; default: the recipe\'s',
    )
    verb.add_argument(
        "--budget",
        metavar="SHARES",
        help="equal cost: every method at these shares of the unreduced model's MACs, e.g. 0.5 or 0.7,0.5",
    )
    verb.add_argument(
        "--budget-latency",
        metavar="SHARES",
        help="every method at these shares of the unreduced model's latency on this machine, found by the clock",
    )
    verb.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="timm's pretrained weights from the hub, or those in FILE, and no training: every method off the shelf",
    )
    verb.add_argument("--seeds", type=int, help="how many seeds, each with its own base; default: the recipe's")
    add_where(verb)
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="where the recipe's data set lies; default: the recipe's"
    )
    verb.add_argument("--plan", action="store_true", help="print the cells and the estimated hours, and run nothing")
    verb.add_argument(
        "--time-limit",
        metavar="9m",
        help="stop between two steps after so long (s, m or h), everything saved; the same command continues",
    )
    verb.add_argument(
        "--fresh",
        action="store_true",
        help="discard this machine's records and checkpoints in the folder and start again",
    )


def act(arguments: argparse.Namespace) -> int:
    from tpbench import recipe as recipes
    from tpbench import registry, schedule

    for path in arguments.plugin:
        registry.plug(path)
    began = time.monotonic()
    limit = seconds(arguments.time_limit)
    recipe = recipes.load(arguments.recipe)
    if arguments.data is not None:
        recipe = recipes.elsewhere(recipe, arguments.data)
    if arguments.pretrained:
        recipe = recipe.untrained(arguments.pretrained)
    variants = with_controls(registry.variants(asked_methods(arguments, recipe)), recipe)
    schedules = schedule.parse_all(asked_schedules(arguments, recipe))
    seeds = asked_seeds(arguments, recipe)
    out = arguments.out or Path("results") / recipe.name

    from tpbench.bench import look
    from tpbench.bench.plan import Plan

    if arguments.plan:
        recipe = replace(recipe, pretrained=False)  # shapes are enough
    plan = Plan(
        recipe=recipe,
        out=out,
        device=arguments.device,
        variants=tuple(variants),
        reducing_schedules=tuple(dict.fromkeys(schedules)),
        seeds=seeds,
        plugins=tuple(arguments.plugin),
        holes=(arguments.methods or "all") == "all",
        deadline=None if limit is None else began + limit,
    )
    if arguments.plan:
        return show_forecast(plan)
    # Whether the images in --data are those of the records is seen only by reading them.
    known = None if arguments.fresh or arguments.data else look.finished(plan)
    if known is None:
        return measure(plan, arguments.fresh)
    from tpbench.bench.progress import Progress

    Progress().start(len(plan.cells), len(plan.cells), jobs=())
    return conclude(plan, known)


def measure(plan: Plan, fresh: bool) -> int:
    """Measure what is missing, write the report and return the exit code."""
    from tpbench import environment
    from tpbench.bench import runner
    from tpbench.bench.progress import Progress
    from tpbench.training import ranks

    environment.begin(plan.recipe.workers, plan.device)
    records = runner.run(plan, fresh, Progress())
    return DONE if ranks.rank() != 0 else conclude(plan, records)


def conclude(plan: Plan, records: Sequence[Record]) -> int:
    """Write the report, say what is left, what has failed and what cannot be read, and return the exit code."""
    from tpbench.bench import look

    unread = say_what_was_read(plan.out)
    if records:
        show(records, plan.out)
    if left := len(plan.cells) - len(records):
        say(f"time limit reached: {left} of {len(plan.cells)} cells are left; the same command continues", DONE)
    elif records and (untimed := look.untimed(plan, records[0].machine)):
        say(f"time limit reached: {untimed}; the same command continues", DONE)
    failed = list(look.failures(records))
    for record in failed:
        say(f"failed: {record.method} {record.schedule} seed {record.seed}: {record.error}", FAILED)
    return FAILED if failed else unread


def show_forecast(plan: Plan) -> int:
    from tpbench import environment
    from tpbench.bench import forecast

    environment.begin(plan.recipe.workers, plan.device)
    for line in forecast.lines(forecast.forecast(plan)):
        print(line)
    return DONE


def show(records: Sequence[Record], out: Path) -> None:
    """Write the report of a results folder and print the comparison of these records."""
    from rich.console import Console

    from tpbench.report import frame, sessions, terminal, write

    write.write(out)
    terminal.show(frame.compare(records, timed=sessions.of(out)), Console())
    print(f"\ntables: {out / 'tables'}, figures: {out / 'figures'}, what each column means: {out / 'README.md'}")


def asked_methods(arguments: argparse.Namespace, recipe: Recipe) -> str:
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


def asked_seeds(arguments: argparse.Namespace, recipe: Recipe) -> int:
    """The number of seeds asked for, or else the recipe's."""
    seeds = recipe.seeds if arguments.seeds is None else arguments.seeds
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds {seeds}: at least 1 is needed, at most {MOST_SEEDS} are possible")
    return seeds


def asked_schedules(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The schedules named, shares of cost at the recipe's blocks, or else the recipe's schedules."""
    where = recipe.schedules[0].partition("@")[2]
    asked = arguments.schedules.split(";") if arguments.schedules else []
    for kind, shares in (("macs", arguments.budget), ("latency", arguments.budget_latency)):
        asked += [f"{kind}={share.strip()}@{where}" for share in (shares or "").split(",") if share.strip()]
    return asked or list(recipe.schedules)
