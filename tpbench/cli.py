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

from tpbench.errors import CellFailed, UsageError
from tpbench.record import Record

if TYPE_CHECKING:
    from tpbench.bench import Plan
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

    text = "train, evaluate and measure methods x schedules x seeds, and write the tables"
    run = _verb(verbs, "run", do_run, text, "tpbench run --recipe smoke --methods wkmedoids,topk")
    run.add_argument(
        "--recipe",
        default="digits",
        help="digits (default), smoke, ablations, cifar10-cpu, cifar10, another packaged name, or a .py file",
    )
    run.add_argument(
        "--methods",
        help="all, or names separated by commas, with settings where wanted: topk,wkmedoids(init=grid,site=end);"
        " default: the recipe's, usually all; see `tpbench list`",
    )
    run.add_argument(
        "--schedules",
        help='budgets, e.g. "0.7@3,6,9;0.5@3,6,9", "137,96,67@3,6,9", "macs=0.6@3,6,9"; default: the recipe\'s',
    )
    run.add_argument(
        "--budget",
        metavar="SHARES",
        help="equal cost: every method at these shares of the unreduced model's MACs, e.g. 0.5 or 0.7,0.5",
    )
    run.add_argument(
        "--budget-latency",
        metavar="SHARES",
        help="every method at these shares of the unreduced model's latency on this machine, found by the clock",
    )
    run.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="timm's pretrained weights from the hub, or those in FILE, and no training: every method off the shelf",
    )
    run.add_argument("--seeds", type=int, help="how many seeds, each with its own base; default: the recipe's")
    run.add_argument("--out", type=Path, help="results folder (default: results/RECIPE)")
    run.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    run.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file with your own methods"
    )
    run.add_argument("--data", type=Path, metavar="DIR", help="where the recipe's data set lies; default: the recipe's")
    run.add_argument("--plan", action="store_true", help="print the cells and the estimated hours, and run nothing")
    run.add_argument(
        "--time-limit",
        metavar="9m",
        help="stop between two steps after so long (s, m or h), everything saved; the same command continues",
    )
    run.add_argument(
        "--fresh",
        action="store_true",
        help="discard this machine's records and checkpoints in the folder and start again",
    )

    text = "MACs and latency of one model and method, layer by layer, untrained"
    example = "tpbench profile --model deit_small_patch16_224 --method wkmedoids --schedule 0.7@3,6,9"
    profile = _verb(verbs, "profile", do_profile, text, example)
    profile.add_argument("--model", required=True, help="a timm model name")
    profile.add_argument("--method", required=True, help="a method's name; see `tpbench list`")
    profile.add_argument("--schedule", default="none", help="a budget, e.g. 0.7@3,6,9 (blocks count from 0)")
    profile.add_argument("--batch-sizes", default="1,32", help="images per forward pass, e.g. 1,32 (default)")
    profile.add_argument("--repeats", type=int, default=20, help="samples per batch size (default 20)")
    profile.add_argument(
        "--site", default="mid", choices=("mid", "end"), help="where in the blocks to reduce (default mid)"
    )
    profile.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    profile.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    profile.add_argument(
        "--compile", action="store_true", help="torch.compile both models; the fastest unreduced one is the reference"
    )
    profile.add_argument(
        "--cuda-graph", action="store_true", help="record both models as CUDA graphs and replay them (small batches)"
    )
    profile.add_argument(
        "--trace", type=Path, metavar="DIR", help="write a trace for TensorBoard's PyTorch Profiler plug-in"
    )
    profile.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    text = "learn how many tokens each block keeps, by the search of a method's paper, for any method to use"
    search = _verb(verbs, "search", do_search, text, "tpbench search --recipe digits --method topk")
    search.add_argument("--recipe", default="digits", help="digits (default), another packaged name, or a .py file")
    search.add_argument("--method", required=True, help="whose search: topk (PoWER-BERT's soft-extract) or diffrate")
    search.add_argument("--seed", type=int, default=0, help="whose base, trained if it is not there (default 0)")
    search.add_argument("--out", type=Path, help="results folder (default: results/RECIPE)")
    search.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    search.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file with your own methods"
    )

    text = "rebuild the tables and figures of a results folder from its records"
    report = _verb(verbs, "report", do_report, text, "tpbench report results/digits")
    report.add_argument("folder", type=Path, metavar="DIR", help="a results folder")
    report.add_argument(
        "--by",
        choices=("schedule", "macs", "latency"),
        help="print the rows too, grouped by schedule, or by the MACs or the time that they take",
    )

    text = "which methods go through torch.compile, torch.export and ONNX, and why the others do not"
    export = _verb(verbs, "export", do_export, text, "tpbench export --methods all --out results/export")
    export.add_argument("--methods", default="all", help="all (default), or names separated by commas")
    export.add_argument("--model", default="test_vit", help="a timm model name (default test_vit, a small one)")
    export.add_argument("--schedule", default="0.7@1,3", help="a budget (default 0.7@1,3)")
    export.add_argument("--out", type=Path, default=Path("results/export"), help="folder (default results/export)")

    text = "the paper's eight claims against the records of results folders"
    claims = _verb(verbs, "claims", do_claims, text, "tpbench claims results/cifar10 results/cifar10-w128")
    claims.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="results folders (default: all under results)"
    )
    claims.add_argument("--out", type=Path, default=Path("results"), help="where the table goes (default: results)")

    listing = _verb(verbs, "list", do_list, "the methods that `run` knows", "tpbench list --json")
    listing.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    return top


def _verb(verbs: argparse._SubParsersAction, name: str, do: object, text: str, example: str) -> Parser:
    verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: {example}")
    verb.set_defaults(verb=do)
    return verb


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

    from tpbench import environment, runner
    from tpbench.workers import Progress

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
    if environment.rank() != 0:
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
    from tpbench import forecast

    for line in forecast.told(forecast.forecast(plan)):
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

    from tpbench import environment, search
    from tpbench.bench import Plan
    from tpbench.workers import Progress

    environment.begin(recipe.workers, arguments.device)  # the threads that `run` would train the base with
    plan = Plan(recipe, (), out, arguments.device, tuple(arguments.plugin))
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
    from tpbench.report import claims, claims_page, study

    folders = arguments.folders or sorted(path.parent for path in Path("results").glob("*/records"))
    studies = study.read_studies(folders)
    readings = claims.readings(studies)
    paths = claims_page.write(arguments.out, studies, readings)
    for claim, text, verdict in claims_page.summary(readings):
        print(f"{claim}. {text}: {verdict}")
    print("\n" + "\n".join(map(str, paths)))
    return DONE


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
