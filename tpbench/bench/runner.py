"""The benchmark: for each method, schedule and seed -> build, train, evaluate, measure, record. It only connects."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tpbench import registry, vit
from tpbench.bench.jobs import Job, side_by_side
from tpbench.bench.models import build_base, reduced
from tpbench.bench.plan import Cell, Plan
from tpbench.bench.progress import Progress, Tell
from tpbench.bench.workspace import Bench, locked
from tpbench.errors import OutOfTime, Unreachable, UsageError
from tpbench.measure import latency_budget as budget
from tpbench.measure.cell import measure
from tpbench.measure.spectrum import spectrum
from tpbench.recipe import Recipe
from tpbench.record import Record, read, replace_text, write
from tpbench.registry import Variant
from tpbench.schedule import Schedule, parse
from tpbench.training.train import train

SPECTRUM_IMAGES = 16


def plan(
    recipe: Recipe,
    variants: Sequence[Variant],
    schedules: Sequence[Schedule],
    seeds: int,
    out: Path,
    device: str,
    plugins: tuple[str, ...] = (),
    holes: bool = False,
) -> Plan:
    """Every cell, in an order that makes a partial run a comparison: all methods at one schedule and seed first.

    Each method and schedule is built once, untrained, so that a budget that cannot be reached is refused before any
    training; with `holes` it is left to its cell to record why it stays empty.
    """
    model = build_base(recipe, seed=0)
    rows: list[tuple[Variant, Schedule]] = []
    for schedule in schedules:
        schedule.check(len(model.blocks))
        for variant in variants:
            row = (variant, parse("none") if variant.card.unreduced else schedule)
            if row not in rows:
                try:
                    reduced(recipe, model, variant, trial(schedule, model))
                except Unreachable:
                    if not holes:
                        raise
                rows.append(row)
    cells = [Cell(variant, schedule, seed) for seed in range(seeds) for variant, schedule in rows]
    return Plan(recipe, tuple(cells), out, device, plugins)


def trial(schedule: Schedule, model: nn.Module) -> Schedule:
    """A schedule to try a method with before anything runs; for one that the clock must solve, nothing reduced."""
    whole = [model.patch_embed.num_patches] * len(schedule.blocks)
    return schedule if schedule.latency_share is None else schedule.counting(whole)


def run(plan: Plan, fresh: bool, progress: Progress) -> list[Record]:
    """Run a plan's cells that have no record yet; the records of all that have one when all is done or time is up."""
    with locked(plan.out):
        return run_missing(plan, fresh, progress)


def run_missing(plan: Plan, fresh: bool, progress: Progress) -> list[Record]:
    bench = Bench(plan)
    bench.prepare(fresh)
    missing = [cell for cell in plan.cells if not bench.done(cell)]
    seeds, epochs = sorted({cell.seed for cell in missing}), plan.recipe.base.epochs
    bases = [Job(f"base seed {n}", train_base, n, (), False, epochs * (not bench.base_path(n).exists())) for n in seeds]
    spectra = [Job(f"spectrum seed {j.argument}", spectrum_of_base, j.argument, (j.name,), False) for j in bases]
    first = {bench.budget_path(cell): cell for cell in reversed(missing) if cell.schedule.latency_share is not None}
    budgets = [Job(f"budget of {path.stem}", solve_budget, cell, counts=False) for path, cell in first.items()]
    solved = {path: job.name for path, job in zip(first, budgets)}

    def needs(cell: Cell) -> tuple[str, ...]:
        return tuple(filter(None, (f"base seed {cell.seed}", solved.get(bench.budget_path(cell)))))

    cells = [Job(str(cell), run_cell, cell, needs(cell), work=plan.recipe.finetune.epochs) for cell in missing]
    progress.start(len(plan.cells), len(plan.cells) - len(missing), bases + cells)
    with contextlib.suppress(OutOfTime):
        side_by_side(bases + spectra + budgets + cells, bench.workers, bench, partial(Bench, plan), progress)
    paths = [bench.record_path(cell) for cell in plan.cells]
    return [read(path) for path in paths if path.exists()]


def train_base(bench: Bench, seed: int, tell: Tell) -> None:
    """Train the unreduced model of a seed once, unless its weights are there already."""
    if bench.base_path(seed).exists():
        bench.base(seed)  # refuses weights of another recipe
        return
    bench.check_time()
    model = vit.reduce(build_base(bench.recipe, seed).to(bench.device), "none")
    if bench.recipe.base.epochs:
        folder = bench.work / f"base_seed{seed}"
        training = train(
            model,
            bench.data,
            bench.recipe.base,
            seed=seed,
            dtype=bench.dtype,
            folder=folder,
            identity=bench.identity,
            deadline=bench.plan.deadline,
            progress=told(tell),
            tick=partial(tell, ""),
        )
        bench.keep_base(seed, model, training.seconds)
        bench.forget(folder)
    else:
        bench.keep_base(seed, model, 0.0)


def spectrum_of_base(bench: Bench, seed: int, tell: Tell) -> None:  # noqa: ARG001
    """What attention does to the frequencies of its values, on the trained base of a seed: the paper's second claim."""
    path = bench.out / "spectra" / bench.machine / f"seed{seed}.json"
    if bench.writes and not path.exists():
        bench.check_time()
        images = next(iter(bench.data.test.batches(SPECTRUM_IMAGES))).images
        gains = spectrum(vit.reduce(bench.base(seed), "none"), images)
        about = {"recipe": bench.recipe.name, "recipe_digest": bench.recipe.digest, "seed": seed}
        replace_text(path, json.dumps(about | gains) + "\n")


def solve_budget(bench: Bench, cell: Cell, tell: Tell) -> None:
    """Find, once for all seeds, the counts with which a row meets its share of latency on this machine."""
    bench.check_time()
    if bench.writes and not bench.budget_path(cell).exists():
        tell("bisection by the clock")
        recipe, base = bench.recipe, build_base(bench.recipe, seed=0).to(bench.device)
        found = bench.budget(cell)
        make = partial(reduced, recipe, base, cell.variant)
        budget.solve(found, make, base, cell.schedule, recipe.measure, bench.dtype)
        write(bench.budget_path(cell), found)
    bench.wait()


def run_cell(bench: Bench, cell: Cell, tell: Tell) -> None:
    """Build, evaluate off the shelf, train, evaluate, measure, record. What goes wrong is recorded with its reason."""
    bench.check_time()
    record = bench.blank(cell)
    folder = bench.work / "cells" / Path(record.file_name).stem
    try:
        recipe, base = bench.recipe, bench.base(cell.seed)
        method = registry.method(cell.variant.method)
        teacher = vit.reduce(copy.deepcopy(base), "none") if method.teacher else None
        torch.manual_seed(cell.seed)  # a method's own parameters start alike in every run
        model = reduced(recipe, base, cell.variant, bench.schedule(cell))

        bench.assess(record, "off_the_shelf", model)
        if recipe.finetune.epochs:
            training = train(
                model,
                bench.data,
                recipe.finetune,
                seed=cell.seed,
                dtype=bench.dtype,
                teacher=teacher,
                folder=folder,
                identity=bench.identity,
                deadline=bench.plan.deadline,
                progress=told(tell),
                tick=partial(tell, ""),
            )
            record.training = asdict(training)
            bench.check_time()  # what was trained is kept; what follows is short
            bench.assess(record, "fine_tuned", model)
        bench.check_time()
        if bench.writes:
            images = next(iter(bench.data.test.batches(max(recipe.measure.batch_sizes)))).images
            measure(record, model, bench.base(cell.seed), recipe.measure, bench.dtype, images)
    except OutOfTime:
        raise
    except Unreachable as error:
        record.reachable, record.error = False, f"unreachable: {error}"
    except Exception as error:
        record.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{cell}: {record.error}", file=sys.stderr)
        if not isinstance(error, RuntimeError | UsageError):  # unforeseen: whoever mends it wants the place
            traceback.print_exc()
    if bench.writes:
        write(bench.record_path(cell), record)
        bench.forget(folder) if record.error is None else None


def told(tell: Tell) -> Callable[[int, float], None]:
    return lambda epoch, loss: tell(f"epoch {epoch + 1}, loss {loss:.3f}")


def failures(records: Sequence[Record]) -> Iterator[Record]:
    """The records of cells that went wrong."""
    return (record for record in records if record.error is not None and record.reachable)
