"""What is measured on a trained base for the paper's claims: the spectrum of attention, and clustering starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tpbench import vit
from tpbench.bench.bases import load_base
from tpbench.bench.cell_model import build_cell
from tpbench.bench.jobs import Job
from tpbench.bench.plan import Cell
from tpbench.bench.workspace import Workspace
from tpbench.errors import Unreachable
from tpbench.measure.spectrum import spectrum
from tpbench.measure.starts import clusters_by_medoids, starts
from tpbench.record import write, write_json
from tpbench.training.train import Update

SPECTRUM_IMAGES = 16


def base_measurements(workspace: Workspace, seed: int, base: Job) -> Iterator[Job]:
    """The jobs that measure the base of a seed for the paper's claims."""
    needs = (base.name,)
    is_done = workspace.spectrum_path(seed).exists
    yield Job(f"spectrum seed {seed}", measure_spectrum, seed, needs=needs, is_done=is_done, counts=False)
    for cell in reference_cells(workspace, seed)[:1]:
        is_done = workspace.starts_path(seed).exists
        yield Job(f"starts seed {seed}", measure_starts, cell, needs=needs, is_done=is_done, counts=False)


def measure_spectrum(workspace: Workspace, seed: int, update: Update) -> None:  # noqa: ARG001
    """Measure how attention changes the frequencies of its values on a trained base: the paper's second claim."""
    path = workspace.spectrum_path(seed)
    if workspace.writes and not path.exists():
        workspace.check_time()
        images = next(iter(workspace.data(seed).test.batches(SPECTRUM_IMAGES))).images
        gains = spectrum(vit.reduce(load_base(workspace, seed), "none"), images)
        write(path, replace(gains, **base_identity(workspace, seed)))


def reference_cells(workspace: Workspace, seed: int) -> list[Cell]:
    """A seed's cells of the recipe's reference method whose counts need no measured latency; often none."""
    own = [cell for cell in workspace.plan.cells if str(cell.variant) == workspace.recipe.reference]
    own.sort(key=lambda cell: workspace.plan.schedules.index(cell.schedule))
    return [cell for cell in own if cell.seed == seed and not cell.needs_latency]


def measure_starts(workspace: Workspace, cell: Cell, update: Update) -> None:
    """Measure how start and iterations change the clustering objective on a cell's base: the paper's seventh claim."""
    path = workspace.starts_path(cell.seed)
    if path.exists() or not workspace.writes:
        return
    workspace.check_time()
    try:
        model, _ = build_cell(workspace, cell)
    except Unreachable:  # the cell's own record says so
        return
    if clusters_by_medoids(model):
        update("clustering from every start")
        batches = workspace.data(cell.seed).test.batches(workspace.recipe.finetune.batch_size)
        found = starts(model, (batch.images for batch in batches), cell.seed)
        write_json(path, base_identity(workspace, cell.seed) | {"schedule": cell.schedule.text} | found)


def base_identity(workspace: Workspace, seed: int) -> dict[str, Any]:
    """The recipe and seed of a base, for the files of what was measured on it."""
    return {"recipe": workspace.recipe.name, "recipe_digest": workspace.recipe.digest, "seed": seed}
