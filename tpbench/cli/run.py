"""`tpbench run`: the benchmark."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpbench.cli import launch, rows
from tpbench.cli.chosen_recipe import add_data, add_set, load_recipe, output_folder
from tpbench.cli.exit_codes import DONE, FAILED, say
from tpbench.cli.json_output import print_document, stdout_to_stderr
from tpbench.cli.shared_flags import add_quiet, add_where, load_plugins
from tpbench.cli.unreadable import report_unreadable
from tpbench.cli.values import seconds
from tpbench.environment import make_deterministic
from tpbench.errors import UsageError
from tpbench.record import Record

if TYPE_CHECKING:
    from tpbench.bench.plan import Plan
    from tpbench.bench.progress import Progress
    from tpbench.report.results import Results

HELP = "train, evaluate and measure methods x schedules x seeds, and write the tables"
EXAMPLE = "tpbench run --recipe smoke --methods wkmedoids,topk"


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the verb's flags to its parser."""
    verb.add_argument(
        "--recipe",
        default="digits",
        help="digits (default), smoke, ablations, cifar10-cpu, cifar10, another packaged name, or a .py file",
    )
    rows.add_flags(verb)
    verb.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="timm's pretrained weights from the hub, or those in FILE, and no training: every method off the shelf",
    )
    verb.add_argument(
        "--off-the-shelf",
        action="store_true",
        help="evaluate methods on the trained base without fine-tuning; the same command without this flag fine-tunes",
    )
    verb.add_argument("--seeds", type=int, help="how many seeds, each with its own base; default: the recipe's")
    add_set(verb)
    add_where(verb)
    add_data(verb)
    add_course(verb)


def add_course(verb: argparse.ArgumentParser) -> None:
    """Add the flags that say how a run goes, from --plan to --json."""
    verb.add_argument("--plan", action="store_true", help="print the cells and the estimated hours, and run nothing")
    verb.add_argument(
        "--time-limit",
        metavar="9m",
        help="stop after this time (s, m or h) between two steps and save everything; the same command continues",
    )
    launch.add_flags(verb)
    verb.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms only, so that a repeated run on a GPU gives the same bits; methods that have"
        " none fail",
    )
    verb.add_argument(
        "--fresh",
        action="store_true",
        help="discard this machine's records and checkpoints in the folder and start again",
    )
    verb.add_argument(
        "--log",
        choices=("tensorboard", "trackio", "wandb"),
        help="also log the training loss of every epoch and the final metrics; install trackio or wandb first",
    )
    add_quiet(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def act(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code. Raises UsageError for a wrong request."""
    began = time.monotonic()
    plan = make_plan(arguments, began)
    output = Output(arguments.quiet, arguments.json, arguments.log)
    if plan.deterministic:
        make_deterministic()
    if arguments.plan:
        return show_forecast(plan, output)
    if launch.uses_other_processes(arguments):
        return launch.start_workers(arguments, plan.out)
    from tpbench.bench import results_folder

    # Only reading the images in --data shows whether they are those of the records.
    known = None if arguments.fresh or arguments.data else results_folder.records_if_finished(plan)
    if known is None:
        return measure(plan, arguments.fresh, output)
    from tpbench.bench.progress import Progress

    Progress(output.quiet).start(len(plan.cells), len(plan.cells), jobs=())
    return report_outcome(plan, known, output=output)


def make_plan(arguments: argparse.Namespace, began: float) -> Plan:
    """The plan that the flags ask for. began: seconds of time.monotonic() from which the time limit counts."""
    from tpbench import overrides, registry, schedule

    launch.check(arguments)
    load_plugins(arguments)
    limit = seconds(arguments.time_limit)
    recipe = load_recipe(arguments)
    if arguments.pretrained:
        recipe = recipe.untrained(arguments.pretrained)
    if arguments.workers is not None:
        recipe = replace(recipe, workers=arguments.workers)
    if arguments.workers is not None or "workers" in (line.path for line in overrides.parse(arguments.lines)):
        launch.check_workers(recipe.workers, recipe, arguments.device)
    variants = rows.with_controls(registry.variants(rows.methods(arguments, recipe)), recipe)
    schedules = rows.reducing(schedule.parse_all(rows.schedules(arguments, recipe)))
    if arguments.off_the_shelf:
        recipe = recipe.without_finetuning(tuple(schedule.text for schedule in schedules))
    seeds = rows.seeds(arguments, recipe)
    out = output_folder(arguments, recipe)

    from tpbench.bench.plan import Plan

    return Plan(
        recipe=recipe,
        out=out,
        device=arguments.device,
        variants=tuple(variants),
        reducing_schedules=schedules,
        seeds=seeds,
        plugins=tuple(arguments.plugin),
        deterministic=arguments.deterministic,
        holes=(arguments.methods or "all") == "all",
        deadline=None if limit is None else began + limit,
    )


@dataclass(frozen=True)
class Output:
    """What a run prints: nothing but errors when quiet; json: one document on standard output instead of tables.

    log: the logger that follows the training.
    """

    quiet: bool = False
    json: bool = False
    log: str | None = None

    def progress(self, plan: Plan) -> Progress:
        """The progress of a plan's cells on the terminal, and in the logger where there is one."""
        from tpbench.bench.progress import Progress

        if self.log is None:
            return Progress(self.quiet)
        from tpbench.bench.loggers import LoggedProgress

        return LoggedProgress(plan, self.log, self.quiet)


def measure(plan: Plan, fresh: bool, output: Output) -> int:
    """Measure what is missing, write the report and return the exit code."""
    from tpbench import environment
    from tpbench.bench import runner
    from tpbench.training import ranks

    with stdout_to_stderr(output.json):
        environment.prepare_process(plan.recipe.workers, plan.device)
        ended = runner.run(plan, fresh, output.progress(plan))
    return DONE if ranks.rank() != 0 else report_outcome(plan, ended.records, output=output, reports=ended.reports)


def report_outcome(plan: Plan, records: Sequence[Record], *, output: Output, reports: bool = True) -> int:
    """Write the report, say what is left, what has failed and what cannot be read, and return the exit code.

    reports=False leaves the report to another run.
    """
    from tpbench.bench import results_folder

    unread = report_unreadable(plan.out)
    left = results_folder.cells_left(plan, records)
    failed = [
        f"{record.method} {record.schedule} seed {record.seed}: {record.error}"
        for record in results_folder.failures(records)
    ]
    counts = {"cells": len(plan.cells), "left": left, "failed": failed}
    if not reports:
        say("all cells are measured; another run times the rows and writes the report", DONE)
    if records and reports:
        print_comparison(records, plan.out, output=output, counts=counts)
    elif output.json:
        print_document({"folder": str(plan.out), "machines": []} | counts)
    if left:
        say(f"time limit reached: {left} of {len(plan.cells)} cells are left; the same command continues", DONE)
    elif reports and records and (untimed := results_folder.timing_left(plan, records[0].machine)):
        say(f"time limit reached: {untimed}; the same command continues", DONE)
    for reason in failed:
        say(f"failed: {reason}", FAILED)
    return FAILED if failed else unread


def show_forecast(plan: Plan, output: Output) -> int:
    """Print a plan's cells and the hours that they may take; nothing runs."""
    from tpbench import environment
    from tpbench.bench import forecast

    with stdout_to_stderr(output.json):
        environment.prepare_process(plan.recipe.workers, plan.device)
        lines = forecast.lines(forecast.forecast(plan))
    if output.json:
        print_document({"folder": str(plan.out), "cells": len(plan.cells), "forecast": list(lines)})
    else:
        print(*lines, sep="\n")
    return DONE


def print_comparison(records: Sequence[Record], out: Path, output: Output, counts: dict[str, Any]) -> None:
    """Write the report of a results folder and print the comparison of these records as it was asked for."""
    from tpbench.bench.results_folder import locked
    from tpbench.report import document, terminal, write
    from tpbench.report.results import Results

    with stdout_to_stderr(output.json):
        with locked(out):
            results = Results.of(out)
            write.write_results(results)
        compared = results.of_records(records)
    if output.json:
        print_document(document.document(out, compared) | counts)
    elif not output.quiet:
        from rich.console import Console

        terminal.show(compared, Console())
        print(f"\ntables: {out / 'tables'}, figures: {out / 'figures'}, what each column means: {out / 'README.md'}")
    write_page(results, silent=output.json or output.quiet)


def write_page(results: Results, silent: bool) -> None:
    """Write the page of a results folder, or say why there is none: a run does not fail for that."""
    from tpbench.report import page

    try:
        written = page.write([results.folder], results.folder / page.NAME, results=results)
    except UsageError as error:
        say(f"no {page.NAME}: {error}", DONE)
        return
    if not silent:
        print(f"page: {written}")
