"""`tpbench tune`: the same few trials of fine-tuning for every method."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from tpbench.cli.chosen_recipe import add_data, add_set, load_recipe, output_folder, run_command
from tpbench.cli.exit_codes import DONE, say
from tpbench.cli.shared_flags import add_quiet, add_where, load_plugins
from tpbench.cli.values import seconds
from tpbench.errors import OutOfTime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpbench.tuning import Tuned, Tuning

HELP = "try the same eight settings of fine-tuning with every method, and keep the best for each beside the recipe"
EXAMPLE = "tpbench tune --recipe digits"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--recipe", default="digits", help="digits (default), another packaged name, or a .py file")
    verb.add_argument("--methods", default="all", help="all (default), or names separated by commas")
    add_data(verb)
    add_set(verb)
    add_where(verb)
    verb.add_argument(
        "--time-limit",
        metavar="9m",
        help="stop after this time (s, m or h); finished trials are kept, and the same command continues",
    )
    add_quiet(verb)


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    from tpbench import recipe as recipes
    from tpbench import registry, schedule

    began = time.monotonic()
    limit = seconds(arguments.time_limit)
    load_plugins(arguments)
    recipe = load_recipe(arguments, tuned=False)
    variants = registry.variants(arguments.methods)
    out = output_folder(arguments, recipe)

    from tpbench import environment
    from tpbench.bench import tune
    from tpbench.bench.plan import Plan
    from tpbench.bench.progress import Progress

    environment.prepare_process(recipe.workers, arguments.device)
    plan = Plan(
        recipe=recipe,
        out=out,
        device=arguments.device,
        variants=tuple(variants),
        reducing_schedules=tuple(schedule.parse_all(recipe.schedules[:1])),
        plugins=tuple(arguments.plugin),
        deadline=None if limit is None else began + limit,
    )
    path = recipes.tuning_path(arguments.recipe, recipe)
    try:
        found = tune.run(plan, path, Progress(arguments.quiet))
    except OutOfTime:
        left = f"{tune.methods_left(plan)} of {len(variants)} methods are left"
        say(f"time limit reached: {left}; the same command continues", DONE)
        return DONE
    if not arguments.quiet:
        print("\n".join(table(found)))
        print(f"\nkept in {path}, used by `{run_command(arguments)}`")
    return DONE


def table(found: Tuning) -> Iterator[str]:
    """The losses and accuracies of each method before and after tuning, in lines of text."""
    yield f"validation at {found.schedule}, means of {len(found.seeds)} seeds that are not reported"
    yield f"{'method':<16} {'loss, default':>13} {'tuned':>7} {'top-1 %, default':>17} {'tuned':>7}  lines"
    for method, tuned in found.methods.items():
        lines = ", ".join(f"{name}={value:.3g}" for name, value in found.space[tuned.chosen].items()) or "default"
        yield f"{method:<16} {_columns(tuned)}  {lines}"


def _columns(tuned: Tuned) -> str:
    loss, chosen_loss = (_text(tuned.losses[number], ".3f") for number in (0, tuned.chosen))
    top1, chosen_top1 = (_text(tuned.top1[number], ".1%") for number in (0, tuned.chosen))
    return f"{loss:>13} {chosen_loss:>7} {top1:>17} {chosen_top1:>7}"


def _text(value: float | None, how: str) -> str:
    return "diverged" if value is None else format(value, how)
