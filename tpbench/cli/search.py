"""`tpbench search`: learn how many tokens each block keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpbench.cli.outcome import DONE
from tpbench.cli.where import add_where

HELP = "learn how many tokens each block keeps, using the search of a method's paper; the counts work with any method"
EXAMPLE = "tpbench search --recipe digits --method topk"


def add_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--recipe", default="digits", help="digits (default), another packaged name, or a .py file")
    verb.add_argument("--method", required=True, help="whose search: topk (PoWER-BERT's soft-extract) or diffrate")
    verb.add_argument("--seed", type=int, default=0, help="whose base, trained if it is not there (default 0)")
    add_where(verb)


def act(arguments: argparse.Namespace) -> int:
    from tpbench import recipe as recipes
    from tpbench import registry

    for path in arguments.plugin:
        registry.plug(path)
    recipe = recipes.load(arguments.recipe)
    out = arguments.out or Path("results") / recipe.name

    from tpbench import environment
    from tpbench.bench import search
    from tpbench.bench.plan import Plan
    from tpbench.bench.progress import Progress

    environment.begin(recipe.workers, arguments.device)  # the threads that `run` would train the base with
    plan = Plan(recipe=recipe, out=out, device=arguments.device, plugins=tuple(arguments.plugin))
    path = search.run(plan, arguments.method, arguments.seed, Progress())

    from tpbench.report import learned

    found = learned.read(path)
    print(learned.summary(found))
    print(f"figure: {learned.draw(out)}\nuse it: tpbench run --recipe {arguments.recipe} --schedules learned:{path}")
    return DONE
