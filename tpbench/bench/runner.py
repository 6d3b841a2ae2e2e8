"""The benchmark: for each seed, schedule and method -> build, train, evaluate, measure, record. It only connects."""

from __future__ import annotations

import contextlib
import copy
import errno
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tpbench import registry, vit
from tpbench.bench.bases import base_path, load_base, save_base
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.models import build_base, cell_seeds, check_rows, reduced, with_live_budget
from tpbench.bench.plan import Cell, Plan
from tpbench.bench.progress import Progress
from tpbench.bench.results_folder import RecordChanged, measured_records, pack_if_complete
from tpbench.bench.timing import solve_budgets, time_rows
from tpbench.bench.workspace import Workspace
from tpbench.errors import OutOfTime, Unreachable, UsageError, in_short
from tpbench.measure.cell import Cost, measure
from tpbench.measure.spectrum import spectrum
from tpbench.measure.starts import clusters_by_medoids, starts
from tpbench.outcomes import Outcomes, pack
from tpbench.record import Record, write, write_json
from tpbench.registry import Variant
from tpbench.schedule import Schedule
from tpbench.training.checkpoint import Training
from tpbench.training.data import TestSet
from tpbench.training.evaluate import assess
from tpbench.training.train import Update, train

SPECTRUM_IMAGES = 16
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other cell could be written either: the run ends


def benchmark(workspace: Workspace, missing: Collection[Cell]) -> Iterator[Job]:
    """The benchmark as jobs: a base for every seed, then on that base every method at every schedule.

    Only the cells in `missing` run. All methods of one seed come first, so that a partial run is a comparison. Any
    number of workers pull these jobs in this order; see `tpbench.bench.worker`.
    """
    plan = workspace.plan
    for seed in sorted({cell.seed for cell in missing}):
        base = base_job(workspace, seed)
        yield base
        is_done = workspace.spectrum_path(seed).exists
        yield Job(f"spectrum seed {seed}", measure_spectrum, seed, needs=(base.name,), is_done=is_done, counts=False)
        for cell in reference_cells(workspace, seed)[:1]:
            is_done = workspace.starts_path(seed).exists
            yield Job(f"starts seed {seed}", measure_starts, cell, needs=(base.name,), is_done=is_done, counts=False)
        for cell in plan.cells:
            if cell.seed == seed and cell in missing:
                is_done = RecordChanged(plan, workspace.machine, cell=cell, path=workspace.record_path(cell))
                work = plan.finetune_epochs(cell.variant, cell.schedule)
                yield Job(str(cell), run_cell, cell, needs=(base.name,), is_done=is_done, work=work)


def clock_jobs(workspace: Workspace, cells: Sequence[Cell]) -> Iterator[Job]:
    """The job that finds counts by the clock, alone on the machine, where any cell needs it."""
    timed = [cell for cell in cells if cell.needs_clock]
    if timed:
        is_done = partial(all_exist, [workspace.budget_path(cell) for cell in timed])
        yield Job("shares of latency", solve_budgets, timed, is_done=is_done, counts=False, alone=True)


def all_exist(paths: Sequence[Path]) -> bool:
    """Whether there is a file at every path."""
    return all(path.exists() for path in paths)


def base_job(workspace: Workspace, seed: int) -> Job:
    """The job that trains the base of a seed."""
    path = base_path(workspace, seed)
    epochs = 0 if path.exists() else workspace.recipe.base.epochs
    return Job(f"base seed {seed}", train_base, seed, is_done=path.exists, counts=False, work=epochs)


class RunResult(NamedTuple):
    """How a run ended: the records of all cells that have one, and whether this run is the one to write the report."""

    records: list[Record]
    reports: bool


def run(plan: Plan, fresh: bool, progress: Progress) -> RunResult:
    """Run a plan's cells that have no record yet, beside whoever else runs them in the same folder.

    The last run times the rows and reports. A row whose budget its method cannot meet is refused before any training,
    unless the plan leaves it as a hole.
    """
    rows = list(plan.rows()) if fresh else list(missing_rows(Workspace(plan)))
    if rows:
        check_rows(plan, rows)
    workspace = Workspace(plan)
    workspace.prepare(fresh)
    cells = [cell for cell in plan.cells if not workspace.is_done(cell)]
    if cells or plan.recipe.data.source != "digits":  # digits cannot be others than before
        workspace.check_images()
    check_bases(workspace, cells)
    jobs = list(benchmark(workspace, set(cells)))
    progress.start(len(plan.cells), len(plan.cells) - len(cells), jobs)
    timing = Job(f"timing on {workspace.machine}", time_rows, None, counts=False, alone=True, once=True)
    left: set[str] = set()
    with contextlib.suppress(OutOfTime):
        for stage in ([*clock_jobs(workspace, cells)], jobs, [timing]):
            left = side_by_side(
                stage,
                workers=workspace.workers,
                context=workspace,
                make_context=partial(Workspace, plan),
                progress=progress,
            )
    if not workspace.writes:
        return RunResult([], reports=False)
    if timing.name in left:
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
    """Refuse trained bases that are damaged or of another recipe, before anything is built on them."""
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
        training = train(model, workspace.conditions(seed), recipe.base, seed=seed, folder=folder, update=update)
        seconds = training.seconds
    save_base(workspace, seed=seed, model=model, seconds=seconds)
    workspace.delete(folder)


def measure_spectrum(workspace: Workspace, seed: int, update: Update) -> None:  # noqa: ARG001
    """Measure what attention does to the frequencies of its values on a trained base: the paper's second claim."""
    path = workspace.spectrum_path(seed)
    if workspace.writes and not path.exists():
        workspace.check_time()
        images = next(iter(workspace.data(seed).test.batches(SPECTRUM_IMAGES))).images
        gains = spectrum(vit.reduce(load_base(workspace, seed), "none"), images)
        write(path, replace(gains, **base_identity(workspace, seed)))


def reference_cells(workspace: Workspace, seed: int) -> list[Cell]:
    """A seed's cells of the recipe's reference method whose counts need no clock; often none."""
    own = [cell for cell in workspace.plan.cells if str(cell.variant) == workspace.recipe.reference]
    own.sort(key=lambda cell: workspace.plan.schedules.index(cell.schedule))
    return [cell for cell in own if cell.seed == seed and not cell.needs_clock]


def measure_starts(workspace: Workspace, cell: Cell, update: Update) -> None:
    """Measure what start and iterations do to the clustering objective on a cell's base: the paper's seventh claim."""
    path = workspace.starts_path(cell.seed)
    if path.exists() or not workspace.writes:
        return
    workspace.check_time()
    model, _ = build_cell(workspace, cell)
    if clusters_by_medoids(model):
        update("clustering from every start")
        batches = workspace.data(cell.seed).test.batches(workspace.recipe.finetune.batch_size)
        found = starts(model, (batch.images for batch in batches), cell.seed)
        write_json(path, base_identity(workspace, cell.seed) | {"schedule": cell.schedule.text} | found)


def base_identity(workspace: Workspace, seed: int) -> dict[str, Any]:
    """What was measured on a base: its recipe and seed, as they stand in the file."""
    return {"recipe": workspace.recipe.name, "recipe_digest": workspace.recipe.digest, "seed": seed}


def run_cell(workspace: Workspace, cell: Cell, update: Update) -> None:
    """Build, evaluate off the shelf, train, evaluate, measure, record. A failure is recorded with its reason."""
    workspace.check_time()
    record = workspace.new_record(cell)
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
        if workspace.writes:
            record = replace(record, **vars(cost_of(workspace, cell, model)))
    except OutOfTime:
        raise
    except Unreachable as error:
        record = replace(record, reachable=False, error=f"unreachable: {error}")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        record = replace(record, error=f"{type(error).__name__}: {in_short(error)}")
        print(f"{cell}: {record.error}", file=sys.stderr)
        if not isinstance(error, RuntimeError | UsageError | OSError):  # unforeseen: the traceback helps to mend it
            traceback.print_exc()
    if workspace.writes:
        write(workspace.record_path(cell), record)
        if record.error is None:
            workspace.delete(workspace.checkpoint_folder(cell))


def fine_tune(
    workspace: Workspace, cell: Cell, model: vit.TokenViT, *, teacher: vit.TokenViT | None, update: Update
) -> Training:
    """Fine-tune a cell's model in place, from its checkpoint where there is one."""
    return train(
        model,
        workspace.conditions(cell.seed),
        workspace.recipe.finetune_of(cell.variant.method),
        seed=cell_seeds(workspace.recipe, cell.variant, cell.seed)["finetune"],
        teacher=teacher,
        folder=workspace.checkpoint_folder(cell),
        update=update,
    )


def cost_of(workspace: Workspace, cell: Cell, model: vit.TokenViT) -> Cost:
    """What a cell's model costs, measured on test images beside the base of its seed."""
    how = workspace.recipe.measure
    images = next(iter(workspace.data(cell.seed).test.batches(max(how.batch_sizes)))).images
    return measure(model, base=load_base(workspace, cell.seed), how=how, dtype=workspace.dtype, images=images)


def build_cell(workspace: Workspace, cell: Cell) -> tuple[vit.TokenViT, vit.TokenViT | None]:
    """The reduced model of a cell on the trained base of its seed, and the teacher that its method asks for."""
    base = load_base(workspace, cell.seed)
    method = registry.method(cell.variant.method)
    teacher = vit.reduce(copy.deepcopy(base), "none") if method.teacher else None
    torch.manual_seed(cell.seed)  # a method's own parameters start alike in every run
    schedule = with_live_budget(
        workspace.recipe,
        model=base,
        variant=cell.variant,
        schedule=workspace.schedule(cell),
        images=partial(validation_images, workspace, cell),
    )
    return reduced(workspace.recipe, model=base, variant=cell.variant, schedule=schedule), teacher


def validation_images(workspace: Workspace, cell: Cell) -> torch.Tensor:
    """A batch of validation images, [B, C, H, W]."""
    return next(iter(workspace.data(cell.seed).validation.batches(workspace.recipe.finetune.batch_size))).images


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


def new_parameters(model: vit.TokenViT) -> int:
    """How many parameters a model's method brings of its own; before fine-tuning they are random."""
    return sum(parameter.numel() for reducer in model.reducers for parameter in reducer.parameters())


def outcomes_among_all(test_set: TestSet, right: np.ndarray) -> Outcomes:
    """The outcomes of a test part among all images of its data set."""
    among = np.zeros(test_set.count, dtype=bool)
    tested = np.zeros(test_set.count, dtype=bool)
    among[test_set.positions] = right
    tested[test_set.positions] = True
    return Outcomes(test_set.images, among, tested)
