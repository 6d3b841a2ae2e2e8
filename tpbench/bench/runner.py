"""The benchmark: for each seed, schedule and method -> build, train, evaluate, measure, record. It only connects."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpbench import vit
from tpbench.bench.base_measurements import base_measurements
from tpbench.bench.bases import base_path, load_base, save_base
from tpbench.bench.cell_model import build_cell, new_parameters
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.models import build_base, cell_seeds, check_rows
from tpbench.bench.plan import Cell, Plan
from tpbench.bench.progress import Progress
from tpbench.bench.results_folder import RecordChanged, measured_records, pack_if_complete
from tpbench.bench.timing import solve_budgets, time_rows
from tpbench.bench.workspace import Workspace
from tpbench.errors import CellFailed, DataError, Diverged, OutOfTime, Unreachable, UsageError, in_short
from tpbench.measure.cell import Cost, measure
from tpbench.outcomes import Outcomes, pack
from tpbench.record import Record, write
from tpbench.registry import Variant
from tpbench.schedule import Schedule
from tpbench.training import ranks
from tpbench.training.checkpoint import Training
from tpbench.training.data import TestSet
from tpbench.training.evaluate import assess
from tpbench.training.train import Update, train

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other cell could be written either: the run ends


def benchmark(workspace: Workspace, missing: Collection[Cell]) -> Iterator[Job]:
    """The benchmark as jobs: for every seed a base, then on that base every method at every schedule.

    Only the cells in `missing` run. Each seed is completed before the next one starts, and rows that need no
    fine-tuning come first, so that a partial run is a comparison. Any number of workers take these jobs in this order;
    see `tpbench.bench.worker`.
    """
    plan = workspace.plan
    for seed in sorted({cell.seed for cell in missing}):
        base = base_job(workspace, seed)
        yield base
        yield from base_measurements(workspace, seed, base)
        for early in (True, False):  # first the unreduced model and what is not fine-tuned, then the other rows
            for schedule in plan.schedules:
                for method in plan.methods_at(schedule):
                    cell = Cell(method, schedule, seed)
                    if cell in missing and plan.runs_early(method, schedule) == early:
                        yield cell_job(workspace, cell, base)


def base_job(workspace: Workspace, seed: int) -> Job:
    """The job that trains the base of a seed."""
    path = base_path(workspace, seed)
    epochs = 0 if path.exists() else workspace.recipe.base.epochs
    return Job(f"base seed {seed}", train_base, seed, is_done=path.exists, counts=False, work=epochs)


def cell_job(workspace: Workspace, cell: Cell, base: Job) -> Job:
    """The job that measures a cell on the base of its seed."""
    is_done = RecordChanged(workspace.plan, workspace.machine, cell=cell, path=workspace.record_path(cell))
    work = workspace.plan.finetune_epochs(cell.variant, cell.schedule) * cell.schedule.expected_cost
    return Job(str(cell), run_cell, cell, needs=(base.name,), is_done=is_done, work=work)


def latency_jobs(workspace: Workspace, cells: Sequence[Cell]) -> Iterator[Job]:
    """The job that finds counts by measuring latency, alone on the machine, if any cell needs it."""
    timed = [cell for cell in cells if cell.needs_latency]
    if timed:
        is_done = partial(all_exist, [workspace.budget_path(cell) for cell in timed])
        yield Job("shares of latency", solve_budgets, timed, is_done=is_done, counts=False, alone=True)


def all_exist(paths: Sequence[Path]) -> bool:
    """Whether there is a file at every path."""
    return all(path.exists() for path in paths)


class RunResult(NamedTuple):
    """How a run ended: the records of all cells that have one, and whether this run is the one to write the report."""

    records: list[Record]
    reports: bool


def run(plan: Plan, fresh: bool, progress: Progress) -> RunResult:
    """Run a plan's cells that have no record yet, together with other runs in the same folder.

    The last run to end times the rows and writes the report. Raises Unreachable before any training for a row whose
    budget its method cannot meet, unless the plan allows holes.
    """
    rows = list(plan.rows()) if fresh else list(missing_rows(Workspace(plan)))
    if rows:
        check_rows(plan, rows)
    workspace = Workspace(plan)
    workspace.prepare(fresh)
    cells = [cell for cell in plan.cells if not workspace.is_done(cell)]
    if cells or plan.recipe.data.source != "digits":  # the digits never change
        workspace.check_images()
    check_bases(workspace, cells)
    jobs = list(benchmark(workspace, set(cells)))
    progress.start(len(plan.cells), len(plan.cells) - len(cells), jobs)
    timing = Job(f"timing on {workspace.machine}", time_rows, argument=None, counts=False, alone=True, once=True)
    left_to_others: set[str] = set()  # jobs of the last stage that ran
    with contextlib.suppress(OutOfTime):
        for stage in (list(latency_jobs(workspace, cells)), jobs, [timing]):
            left_to_others = side_by_side(
                stage,
                workers=workspace.workers,
                context=workspace,
                make_context=partial(Workspace, plan),
                progress=progress,
            )
    if not workspace.writes:
        return RunResult([], reports=False)
    if timing.name in left_to_others:
        return RunResult(measured_records(plan, workspace.machine), reports=False)
    return RunResult(pack_if_complete(plan, workspace.machine), reports=True)


def missing_rows(workspace: Workspace) -> Iterator[tuple[Variant, Schedule]]:
    """The rows of which at least one cell has no record yet."""
    if not (workspace.work / "host-id").exists():
        yield from workspace.plan.rows()
        return
    open_cells = [cell for cell in workspace.plan.cells if not workspace.is_done(cell)]
    yield from dict.fromkeys((cell.variant, cell.schedule) for cell in open_cells)


def check_bases(workspace: Workspace, cells: Sequence[Cell]) -> None:
    """Raise UsageError for a trained base that is damaged or of another recipe, before anything is built on it."""
    for seed in sorted({cell.seed for cell in cells}):
        if base_path(workspace, seed).exists():
            load_base(workspace, seed)


def train_base(workspace: Workspace, seed: int, update: Update) -> None:
    """Train the unreduced model of a seed, unless its weights exist already."""
    if base_path(workspace, seed).exists():
        load_base(workspace, seed)  # refuses weights of another recipe
        return
    workspace.check_time()
    recipe = workspace.recipe
    model = vit.reduce(build_base(recipe, seed).to(workspace.device), "none")
    seconds = 0.0
    folder = base_path(workspace, seed).with_suffix("")
    if recipe.base.epochs:
        conditions = workspace.conditions(seed, recipe.base_digest)
        training = train(model, conditions, recipe.base, seed=seed, folder=folder, update=update)
        seconds = training.seconds
    save_base(workspace, seed=seed, model=model, seconds=seconds)
    workspace.delete(folder)


def run_cell(workspace: Workspace, cell: Cell, update: Update) -> None:
    """Build, evaluate off the shelf, train, evaluate, measure, record. A failure is recorded with its reason."""
    workspace.check_time()
    record = workspace.new_record(cell)
    together = ranks.world_size() > 1  # whether other ranks are in the same step and wait for this one
    try:
        model, teacher = build_cell(workspace, cell)
        record = replace(record, new_parameters=new_parameters(model), teacher=teacher is not None)
        record = with_evaluation(record, stage="off_the_shelf", workspace=workspace, cell=cell, model=model)
        if workspace.plan.finetune_epochs(cell.variant, cell.schedule):
            training = fine_tune(workspace, cell, model, teacher=teacher, update=update)
            record = replace(record, training=asdict(training))
            workspace.check_time()  # the checkpoint stays; what follows is short and is repeated
            record = with_evaluation(record, stage="fine_tuned", workspace=workspace, cell=cell, model=model)
        workspace.check_time()
        together = False
        if workspace.writes:
            record = replace(record, **vars(cost_of(workspace, cell, model)))
    except OutOfTime:
        raise
    except Unreachable as error:
        requested = {"requested": list(cell.schedule.counts)} if cell.schedule.counts else {}
        record = replace(record, reachable=False, error=f"unreachable: {error}", tokens=requested)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        if together and may_be_alone(error):
            raise CellFailed(f"{cell}: {in_short(error)}") from error  # torchrun ends the other ranks
        record = replace(record, error=f"{type(error).__name__}: {in_short(error)}")
        print(f"{cell}: {record.error}", file=sys.stderr)
        if not isinstance(
            error, RuntimeError | UsageError | OSError
        ):  # unforeseen: the traceback helps to find the fault
            traceback.print_exc()
    if workspace.writes:
        write(workspace.record_path(cell), record)
        if record.error is None:
            workspace.delete(workspace.checkpoint_folder(cell))


def may_be_alone(error: Exception) -> bool:
    """Whether an error may have happened on one of several ranks alone: an unreadable image, memory that ran out."""
    return isinstance(error, DataError | RuntimeError) and not isinstance(error, Diverged)


def fine_tune(
    workspace: Workspace, cell: Cell, model: vit.TokenViT, *, teacher: vit.TokenViT | None, update: Update
) -> Training:
    """Fine-tune a cell's model in place, from its checkpoint if there is one with the same tuned lines and counts."""
    tuned = sorted(workspace.recipe.tuned_lines(cell.variant.method).items())
    return train(
        model,
        replace(workspace.conditions(cell.seed), settings=f"{tuned} {model.requested}"),
        workspace.recipe.finetune_of(cell.variant.method),
        seed=cell_seeds(workspace.recipe, cell.variant, cell.seed)["finetune"],
        teacher=teacher,
        folder=workspace.checkpoint_folder(cell),
        update=update,
    )


def cost_of(workspace: Workspace, cell: Cell, model: vit.TokenViT) -> Cost:
    """What a cell's model costs, measured on test images in turns with the base of its seed."""
    how = workspace.recipe.measure
    images = next(iter(workspace.data(cell.seed).test.batches(max(how.batch_sizes)))).images
    return measure(model, base=load_base(workspace, cell.seed), how=how, dtype=workspace.dtype, images=images)


def with_evaluation(record: Record, stage: str, workspace: Workspace, cell: Cell, model: vit.TokenViT) -> Record:
    """The record with a model's evaluation under the name of its stage: off_the_shelf or fine_tuned."""
    data = workspace.data(cell.seed)
    batch_size = workspace.recipe.finetune.batch_size
    accuracy = assess(model, data, batch_size, dtype=workspace.dtype, seed=cell.seed)
    metrics = {
        f"{stage}_top1": accuracy.test.top1,
        f"{stage}_loss": accuracy.test.loss,
        f"{stage}_validation_top1": accuracy.validation.top1,
        f"{stage}_validation_loss": accuracy.validation.loss,
    }
    outcomes = {stage: pack(outcomes_among_all(data.test_set, accuracy.test.right))}
    images = {"test": accuracy.test.images, "validation": accuracy.validation.images}
    return replace(record, metrics=record.metrics | metrics, outcomes=record.outcomes | outcomes, evaluation=images)


def outcomes_among_all(test_set: TestSet, right: np.ndarray) -> Outcomes:
    """The outcomes of a test part among all images of its data set."""
    among = np.zeros(test_set.count, dtype=bool)
    tested = np.zeros(test_set.count, dtype=bool)
    among[test_set.positions] = right
    tested[test_set.positions] = True
    return Outcomes(test_set.images, among, tested)
