"""What a benchmark times: shares of latency before anything is trained, and the timing session at its end.

Latency depends on the machine, the model, the method and the schedule, and not on the seed: it is measured once for
all seeds, in one session over all rows, while no worker runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import TypeVar

from torch import nn

from tpbench import environment, registry
from tpbench.bench.bases import base_path, load_base
from tpbench.bench.models import build_base, reduced
from tpbench.bench.plan import NOTHING_REDUCED, Cell
from tpbench.bench.progress import clock_time
from tpbench.bench.results_folder import outdated_rows
from tpbench.bench.workspace import Workspace
from tpbench.errors import UsageError
from tpbench.measure import entries, latency_budget, session, timings
from tpbench.measure.entries import Grid, Solved, Subject
from tpbench.measure.images import of_part
from tpbench.measure.modes import Mode
from tpbench.measure.session import Effort
from tpbench.record import Budget, Store, read_budget, write
from tpbench.schedule import Kind, Schedule, parse
from tpbench.training.train import Update

T = TypeVar("T")

ROUNDS = 50  # at least; more where the recipe wants more samples
SECONDS = 300.0  # of sampling, over all runs of the session; after these, fewer rounds must do


def solve_budgets(workspace: Workspace, cells: Sequence[Cell], update: Update) -> None:
    """Find the counts of every row that is to cost a share of latency, all in turns, and write them as Budget files.

    The base is not trained yet: latency depends on shapes alone.
    """
    workspace.check_time()
    missing = {cell[:2]: cell for cell in cells if cell.needs_latency and not workspace.budget_path(cell).exists()}

    def solve_missing(check: Callable[[], None]) -> None:
        base = build_base(workspace.recipe, seed=0).to(workspace.device)
        found = latency_budget.solve(
            subject_of(workspace, base),
            list(missing),
            batch=max(workspace.recipe.measure.batch_sizes),
            dtype=workspace.dtype,
            mode=Mode.of(workspace.recipe.measure, workspace.device),
            watch=partial(report_stage, update),
            check=check,
        )
        for pair, solution in found.items():
            write(workspace.budget_path(missing[pair]), budget_record(workspace, missing[pair], solution))

    if workspace.same_on_all_ranks(len(missing)):
        workspace.on_first_rank(solve_missing)


def budget_record(workspace: Workspace, cell: Cell, solution: latency_budget.Solution) -> Budget:
    """The Budget file of a cell: the counts that meet its share of latency, or why there are none."""
    return Budget(
        machine=workspace.machine,
        method=str(cell.variant),
        schedule=cell.schedule.text,
        batch=max(workspace.recipe.measure.batch_sizes),
        blocks=list(cell.schedule.blocks),
        counts=solution.counts,
        error=solution.error,
        tried=solution.tried,
        environment=environment.describe(workspace.device, workspace.dtype),
        recipe_digest=workspace.recipe.digest,
    )


def time_rows(workspace: Workspace, argument: None, update: Update) -> None:  # noqa: ARG001
    """Time all rows in turns, on the trained base of the first seed, and write OUT/timing/MACHINE.json.

    The rows are those of the plan and of the session that the file holds, since only rows of one session compare. A
    session that has them all is kept, one that was interrupted continues. If the base's weights are gone, nothing is
    timed, and the update says so.
    """
    workspace.check_time()

    def time_all(check: Callable[[], None]) -> None:
        if not base_path(workspace, 0).exists():
            update("nothing timed: the weights of base seed 0 are gone; --fresh trains it again")
            return
        subject = subject_of(workspace, load_base(workspace, 0))
        grid = grid_of(workspace)
        effort = Effort(max(ROUNDS, workspace.recipe.measure.repeats))
        path = timings.path_in(workspace.out, workspace.machine)
        begun = session.begin(
            subject, machine_name=workspace.machine, wanted=effort.rounds, dtype=workspace.dtype, budget=SECONDS
        )
        finished = session.finished(path, begun, entries.keys(grid))
        if finished is None or outdated_rows(finished, Store.of(workspace.out)):
            session.run(
                begun,
                entries=entries.entries(subject, grid, solved_counts(workspace, grid)),
                effort=effort,
                where=workspace.device,
                path=path,
                watch=partial(report_stage, update),
                check=check,
            )

    workspace.on_first_rank(time_all)


def subject_of(workspace: Workspace, base: nn.Module) -> Subject:
    """A base of the recipe, reduced as its rows say, with test images."""
    recipe = workspace.recipe
    source = f"test images of {recipe.data.source}"
    images = of_part(
        workspace.data(0).test, count=max(recipe.measure.batch_sizes), source=source, where=workspace.device
    )
    return Subject(
        recipe.name, weights=f"recipe {recipe.digest}", model=base, images=images, reduce=partial(reduced, recipe)
    )


def grid_of(workspace: Workspace) -> Grid:
    """The plan's rows that a session times, with the methods and schedules that an earlier session has timed.

    Left out are pairs whose counts for a share of latency nobody has asked for, and what this command cannot name, such
    as a method whose plugin is not given; a line on standard error says so.
    """
    plan = workspace.plan
    variants = [variant for variant in plan.variants if plan.is_timed(variant)]
    schedules = list(plan.reducing_schedules)
    path = timings.path_in(workspace.out, workspace.machine)
    earlier = [row.key for row in timings.read(path).rows if row.role == "reduced"] if path.exists() else []
    variants += known_by_name((key.method for key in earlier), registry.variants)
    texts = (key.schedule for key in earlier if key.schedule != NOTHING_REDUCED.text)
    schedules += known_by_name(texts, partial(schedules_of, workspace))
    return Grid(
        variants=tuple(dict.fromkeys(variants)),
        schedules=tuple(dict.fromkeys(schedules)),
        batch_sizes=plan.recipe.measure.batch_sizes,
        dtypes=(workspace.dtype,),
        modes=tuple(Mode.of(plan.recipe.measure, workspace.device).permitted()),
        without_counts=frozenset(
            pair
            for pair in product(variants, schedules)
            if pair[1].kind is Kind.LATENCY and not workspace.budget_path(Cell(*pair, seed=0)).exists()
        ),
    )


def known_by_name(texts: Iterable[str], find: Callable[[str], list[T]]) -> list[T]:
    """What is found by each of the texts, once; a line on standard error names those unknown to this command."""
    found = []
    for text in dict.fromkeys(texts):
        try:
            found += find(text)
        except UsageError as error:
            print(f"{text} is not timed any more: {error}", file=sys.stderr)
    return found


def schedules_of(workspace: Workspace, text: str) -> list[Schedule]:
    """The schedule of a row by its text. That of learned counts has only the stem of their file in OUT/learned."""
    stem = text.removeprefix("learned:")
    return [parse(text if stem == text else f"learned:{workspace.out / 'learned' / stem}.json")]


def solved_counts(workspace: Workspace, grid: Grid) -> Solved:
    """The counts of the rows that cost a share of latency, found by `solve_budgets`, or why there are none."""
    found = {}
    for variant, schedule in grid.pairs():
        cell = Cell(variant, schedule, seed=0)
        if cell.needs_latency:
            known = read_budget(workspace.budget_path(cell))
            found[variant, schedule] = schedule.with_counts(known.counts) if known.counts else known.error
    return found


def report_stage(update: Update, stage: str, share: float, left: float) -> None:
    """Report a stage of timing as a job's progress: the share that is done and the seconds left."""
    update(f"{stage} {share:.0%}, about {clock_time(left)} left" if share else stage)
