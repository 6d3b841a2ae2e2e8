"""The command line: run, profile, search, report, export, claims, list. Few flags; the rest is a line of the recipe.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 some cell failed or the
run was ended, 2 wrong usage. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tpbench.cli import flags
from tpbench.errors import CellFailed, UsageError
from tpbench.record import Record

if TYPE_CHECKING:
    from tpbench.bench.plan import Plan
    from tpbench.recipe import Recipe

DONE, FAILED, WRONG = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(words: Sequence[str] | None = None) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # must stand before torch is loaded
    try:
        arguments = parser().parse_args(words)
        return arguments.verb(arguments)
    except (UsageError, CellFailed) as error:
        return say(error, WRONG if isinstance(error, UsageError) else FAILED)
    except KeyboardInterrupt:
        return say("interrupted; finished cells are kept, the same command continues", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.errno not in (
            errno.ENOENT,
            errno.ENAMETOOLONG,
            errno.EISDIR,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOSPC,
            errno.EDQUOT,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        return say(
            f"cannot write {error.filename or 'results'}: {error.strerror}",
            FAILED if error.errno == errno.ENOSPC else WRONG,
        )


def say(what: object, code: int) -> int:
    print(f"tpbench: {what}", file=sys.stderr)
    return code


def parser() -> Parser:
    from tpbench import __version__

    top = Parser(prog="tpbench", description="Benchmark token reduction in vision transformers under one harness.")
    top.add_argument("--version", action="version", version=f"tpbench {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for name, (do, add_flags, text, example) in VERBS.items():
        about = f"{text[0].upper()}{text[1:]}."
        verb = verbs.add_parser(name, help=text, description=about, epilog=f"example: {example}")
        verb.set_defaults(verb=do)
        add_flags(verb)
    return top


def do_list(arguments: argparse.Namespace) -> int:
    from tpbench import registry

    cards, broken = registry.catalogue()
    if arguments.json:
        print(json.dumps([asdict(card) for card in cards.values()], indent=1))
    else:
        for card in cards.values():
            source = f"{card.venue} {card.year}" if card.venue else ""
            print(f"{card.name:<14} {card.count:<8} {source:<14} {card.title}")
    for problem in broken:
        say(f"method file {problem.module} is broken: {problem.reason}", FAILED)
    return FAILED if broken else DONE


def do_run(arguments: argparse.Namespace) -> int:
    from tpbench import recipe as recipes
    from tpbench import registry, schedule

    for path in arguments.plugin:
        registry.plug(path)
    began, limit = time.monotonic(), _seconds(arguments.time_limit)
    recipe = recipes.load(arguments.recipe)
    if arguments.data is not None:
        recipe = recipes.elsewhere(recipe, arguments.data)
    recipe = recipe.untrained(arguments.pretrained) if arguments.pretrained else recipe
    variants = registry.variants(arguments.methods or ",".join(recipe.methods))
    schedules = schedule.parse_all(asked_schedules(arguments, recipe))
    seeds = recipe.seeds if arguments.seeds is None else arguments.seeds
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: at least 1 is needed")
    out = arguments.out or Path("results") / recipe.name

    from tpbench import environment
    from tpbench.bench import runner
    from tpbench.bench.progress import Progress
    from tpbench.training import ranks

    environment.begin(recipe.workers, arguments.device)
    if arguments.plan:
        recipe = replace(recipe, pretrained=False)  # shapes are enough
    plugins, every = tuple(arguments.plugin), (arguments.methods or "all") == "all"
    plan = runner.plan(recipe, variants, schedules, seeds, out, arguments.device, plugins, holes=every)
    if arguments.plan:
        return show_forecast(plan)
    if limit is not None:
        plan = replace(plan, deadline=began + limit)
    records = runner.run(plan, arguments.fresh, Progress())
    if ranks.rank() != 0:
        return DONE

    if records:
        show(records, out)
    if left := len(plan.cells) - len(records):
        say(f"time limit reached: {left} of {len(plan.cells)} cells are left; the same command continues", DONE)
    failed = list(runner.failures(records))
    for record in failed:
        say(f"failed: {record.method} {record.schedule} seed {record.seed}: {record.error}", FAILED)
    return FAILED if failed else DONE


def show_forecast(plan: Plan) -> int:
    from tpbench.bench import forecast

    for line in forecast.lines(forecast.forecast(plan)):
        print(line)
    return DONE


def show(records: Sequence[Record], out: Path) -> None:
    """Write the report of a results folder and print the comparison of these records."""
    from rich.console import Console

    from tpbench.report import frame, terminal, write

    write.write(out)
    terminal.show(frame.comparison(frame.cells(records)), Console())
    print(f"\ntables: {out / 'tables'}, figures: {out / 'figures'}, what each column means: {out / 'README.md'}")


def do_search(arguments: argparse.Namespace) -> int:
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


def asked_schedules(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The schedules named, shares of cost at the recipe's blocks, or else the recipe's schedules."""
    where = recipe.schedules[0].partition("@")[2]
    asked = arguments.schedules.split(";") if arguments.schedules else []
    for kind, shares in (("macs", arguments.budget), ("latency", arguments.budget_latency)):
        asked += [f"{kind}={share.strip()}@{where}" for share in (shares or "").split(",") if share.strip()]
    return asked or list(recipe.schedules)


def do_profile(arguments: argparse.Namespace) -> int:
    from tpbench.measure import profile
    from tpbench.measure.modes import Mode

    sizes = _batch_sizes(arguments.batch_sizes)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1 is needed")
    result = profile.profile(
        arguments.model,
        arguments.method,
        arguments.schedule,
        sizes,
        arguments.repeats,
        site=arguments.site,
        dtype=arguments.dtype,
        device=arguments.device,
        mode=Mode(arguments.compile, arguments.cuda_graph),
        trace=arguments.trace,
    )
    if arguments.json:
        print(json.dumps(result, indent=1))
        return DONE
    from rich.console import Console

    from tpbench.report import profiled

    profiled.show(result, Console())
    return DONE


def do_report(arguments: argparse.Namespace) -> int:
    from tpbench.report import frame, terminal, write

    paths = write.write(arguments.folder)
    if arguments.by is None:
        print(*paths, sep="\n")
        return DONE
    from rich.console import Console

    from tpbench.record import read_all

    terminal.show(frame.comparison(frame.cells(read_all(arguments.folder))), Console(), arguments.by)
    return DONE


def do_export(arguments: argparse.Namespace) -> int:
    from tpbench import registry

    cards = registry.select(arguments.methods)

    from tpbench.measure import export
    from tpbench.report import exported

    for path in exported.write(arguments.out, export.survey(cards, arguments.model, arguments.schedule)):
        print(path)
    return DONE


def do_claims(arguments: argparse.Namespace) -> int:
    from tpbench.claims import claims, study
    from tpbench.claims import page as claims_page

    folders = arguments.folders or sorted(path.parent for path in Path("results").glob("*/records"))
    studies = study.read_studies(folders)
    readings = claims.readings(studies)
    paths = claims_page.write(arguments.out, studies, readings)
    for claim, text, verdict in claims_page.summary(readings):
        print(f"{claim}. {text}: {verdict}")
    print("\n" + "\n".join(map(str, paths)))
    return DONE


VERBS = {  # what is done, its flags, what it is for, an example
    "run": (
        do_run,
        flags.run,
        "train, evaluate and measure methods x schedules x seeds, and write the tables",
        "tpbench run --recipe smoke --methods wkmedoids,topk",
    ),
    "profile": (
        do_profile,
        flags.profile,
        "MACs and latency of one model and method, layer by layer, untrained",
        "tpbench profile --model deit_small_patch16_224 --method wkmedoids --schedule 0.7@3,6,9",
    ),
    "search": (
        do_search,
        flags.search,
        "learn how many tokens each block keeps, by the search of a method's paper, for any method to use",
        "tpbench search --recipe digits --method topk",
    ),
    "report": (
        do_report,
        flags.report,
        "rebuild the tables and figures of a results folder from its records",
        "tpbench report results/digits",
    ),
    "export": (
        do_export,
        flags.export,
        "which methods go through torch.compile, torch.export and ONNX, and why the others do not",
        "tpbench export --methods all --out results/export",
    ),
    "claims": (
        do_claims,
        flags.claims,
        "the paper's eight claims against the records of results folders",
        "tpbench claims results/cifar10 results/cifar10-w128",
    ),
    "list": (
        do_list,
        flags.listing,
        "the methods that `run` knows",
        "tpbench list --json",
    ),
}


def _seconds(text: str | None) -> float | None:
    """ "9m" is 540.0; a number without a unit is seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--time-limit {text!r}: expected a time such as 540s, 9m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--batch-sizes {text!r}: expected whole numbers separated by commas, as in 1,32") from None
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch-sizes {text!r}: at least one image is needed")
    return sizes
