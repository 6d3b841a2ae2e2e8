"""`tpbench search`: learn how many tokens each block keeps."""

from __future__ import annotations

import argparse

from tpbench.cli.chosen_recipe import add_data, add_set, load_recipe, output_folder, run_command
from tpbench.cli.exit_codes import DONE
from tpbench.cli.shared_flags import add_quiet, add_where, load_plugins

HELP = "learn how many tokens each block keeps, using the search of a method's paper; the counts work with any method"
EXAMPLE = "tpbench search --recipe digits --method topk"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument("--recipe", default="digits", help="digits (default), another packaged name, or a .py file")
    verb.add_argument("--method", required=True, help="whose search to use: topk, diffrate or ltmp")
    verb.add_argument(
        "--seed", type=int, default=0, help="the base to search on, trained if it is not there (default 0)"
    )
    add_data(verb)
    add_set(verb)
    add_where(verb)
    add_quiet(verb)


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""

    load_plugins(arguments)
    recipe = load_recipe(arguments)
    out = output_folder(arguments, recipe)

    from tpbench import environment
    from tpbench.bench import search
    from tpbench.bench.plan import Plan
    from tpbench.bench.progress import Progress

    environment.prepare_process(recipe.workers, arguments.device)  # the threads that `run` would train the base with
    plan = Plan(recipe=recipe, out=out, device=arguments.device, plugins=tuple(arguments.plugin))
    path = search.run(plan, method=arguments.method, seed=arguments.seed, progress=Progress(arguments.quiet))

    from tpbench.record import read_learned
    from tpbench.report import learned

    found = read_learned(path)
    figure = learned.draw(out)
    if not arguments.quiet:
        print(learned.summary(found))
        print(f"figure: {figure}")
        blocks = recipe.schedules[0].partition("@")[2]
        fixed_rate = f"macs={found.off_the_shelf['macs_share']:.3f}@{blocks}"
        command = run_command(arguments, "--schedules", f"learned:{path};{fixed_rate}")
        print(f"use it, beside a fixed rate at the same cost: {command}")
    return DONE
