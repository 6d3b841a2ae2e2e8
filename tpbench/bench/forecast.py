"""The cost of a plan before it runs: its cells, their multiply-adds, and an estimate of the hours.

Counted: the multiply-adds of every cell's training, three forward passes for each image and epoch. Measured: the speed
of the unreduced base over a few training steps on this machine, with random images in memory. Assumed: that training
time is proportional to multiply-adds, that multiply-adds are proportional to the patches left by patch dropout, and, on
a machine without a GPU, the throughput of an H100 on other models. Left out: evaluation, latency samples, reading and
decoding images, compilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tpbench import environment, vit
from tpbench.bench.models import build_base, check_rows, reduced
from tpbench.bench.plan import Cell, Plan
from tpbench.errors import ScheduleError, UsageError
from tpbench.recipe import Data, Recipe
from tpbench.training import data
from tpbench.training.pace import WARM_UP
from tpbench.training.train import Conditions, train

FORWARD_PASSES = 3  # the cost of a training step in forward passes: the backward pass counts as two
TIMED = 3  # steps
# On a CPU, a step of the dry run has the recipe's batch, halved until its forward pass needs at most SMALL_STEP
# multiply-adds (about a second of one core) or SMALL_BATCH images are left. In much smaller steps, the optimiser would
# take too large a share.
SMALL_STEP = 10e9
SMALL_BATCH = 8
# FLOP/s of training on one H100 in bfloat16, not compiled, as measured: the lower value at 512 images of 33 tokens, 192
# wide, where most of the time is spent on launching, the upper for DeiT-S at 128 images.
GPU_FLOPS = (11e12, 95e12)


@dataclass(frozen=True)
class Row:
    """One method at one schedule.

    macs are those of one image's forward pass; None if the method cannot meet the schedule. epochs are those of the
    fine-tuning.
    """

    method: str
    schedule: str
    macs: float | None
    epochs: int


@dataclass(frozen=True)
class Forecast:
    """The cost of a plan. rows are those of one seed; base_macs are those of one image's forward pass."""

    plan: Plan
    device: torch.device
    rows: list[Row]
    train_images: int
    base_macs: int
    images_per_second: float
    batch: int  # images in a step of the dry run

    @property
    def seeds(self) -> int:
        """The number of seeds of the plan."""
        return self.plan.seeds

    def seconds(self, macs: float, epochs: int) -> float:
        """The estimated seconds of training a model with these MACs for this number of epochs on this machine."""
        return epochs * self.train_images * macs / (self.base_macs * self.images_per_second)

    @property
    def train_macs(self) -> float:
        """The multiply-adds of the training of all bases and cells together."""
        base = self.plan.recipe.base
        full_epochs = base.epochs * (1 - base.patch_drop * base.patch_drop_until)
        cells = sum(row.epochs * (row.macs or 0.0) for row in self.rows)
        return self.seeds * self.train_images * FORWARD_PASSES * (full_epochs * self.base_macs + cells)


def forecast(plan: Plan) -> Forecast:
    """Count a plan's cells and train its base for a few steps. Nothing is written or downloaded.

    Raises UsageError for a plan that cannot run, as `check_rows` and `train_images` do.
    """
    recipe = replace(plan.recipe, pretrained=False)  # shapes are enough
    check_rows(replace(plan, recipe=recipe), plan.rows())
    where = environment.device(plan.device)
    model = build_base(recipe, seed=0)
    base_macs = sum(vit.reduce(model, "none").macs().values())
    rows = [
        Row(
            method=str(cell.variant),
            schedule=cell.schedule.text,
            macs=_macs(recipe, model, cell=cell, base_macs=base_macs),
            epochs=plan.finetune_epochs(cell.variant, cell.schedule),
        )
        for cell in plan.cells
        if cell.seed == 0
    ]
    rate, batch = dry_run(recipe, model.to(where), base_macs=base_macs, where=where)
    return Forecast(
        plan=plan,
        device=where,
        rows=rows,
        train_images=train_images(recipe.data, where),
        base_macs=base_macs,
        images_per_second=rate,
        batch=batch,
    )


def _macs(recipe: Recipe, model: torch.nn.Module, *, cell: Cell, base_macs: int) -> float | None:
    """A cell's multiply-adds; for a share of the latency, not measured yet, that share of the base's."""
    if cell.needs_latency:
        return cell.schedule.expected_cost * base_macs
    try:
        return sum(reduced(recipe, model, variant=cell.variant, schedule=cell.schedule).macs().values())
    except ScheduleError:
        return None


def train_images(data_set: Data, where: torch.device) -> int:
    """The number of training images: counted if the files are there, otherwise as the recipe states it.

    Raises UsageError if neither is known.
    """
    if data_set.source == "digits" or (data_set.root and Path(data_set.root).exists()):
        return len(data.load(data_set, where).train)
    if data_set.train_images is None:
        missing = data_set.root or data_set.source
        raise UsageError(f"cannot plan without images: {missing} is not there; use --data DIR")
    used = min(data_set.train_images, data_set.train_limit or data_set.train_images)
    return round(used * (1 - data_set.validation))


def dry_run(recipe: Recipe, model: torch.nn.Module, *, base_macs: int, where: torch.device) -> tuple[float, int]:
    """Train the unreduced model on random images; return its images per second and the images of a step.

    base_macs are those of one image's forward pass.
    """
    optim = recipe.finetune if recipe.base.epochs == 0 else recipe.base
    batch = optim.batch_size // optim.accumulation
    if where.type == "cpu":
        while batch // 2 >= SMALL_BATCH and batch % 4 == 0 and batch * base_macs > SMALL_STEP:  # mixup pairs images
            batch //= 2
    changes = {
        "compile": optim.compile and where.type != "cpu",
        "warmup_epochs": 0.0,
        "zero_stage": 0,
        "patch_drop": 0.0,
    }
    optim = replace(optim, epochs=1, batch_size=batch, accumulation=1, **changes)
    size = recipe.data.image_size
    images = torch.randint(256, (batch * (WARM_UP + TIMED), recipe.data.channels, size, size), dtype=torch.uint8)
    labels = torch.arange(len(images)) % recipe.data.classes
    part = data.Resident(recipe.data, images=images, labels=labels, device=where)
    dtype = environment.dtype(recipe.dtype, where)
    conditions = Conditions(data.Parts(part, part, part), dtype)
    training = train(vit.reduce(model, "none"), conditions, optim, seed=0)
    return training.pace["images_per_second"], batch


def lines(what: Forecast) -> Iterator[str]:
    """A forecast as lines of text."""
    recipe = what.plan.recipe
    bases = f"{what.seeds} bases of {recipe.base.epochs} epochs" if recipe.base.epochs else "bases with given weights"
    yield f"recipe {recipe.name} ({recipe.digest}): {bases}, {len(what.plan.cells)} cells of {recipe.finetune.epochs}"
    yield f"epochs ({len(what.rows)} rows x {what.seeds} seeds), {what.train_images:,} training images; nothing is run"
    yield ""
    yield f"{'schedule':<24} {'method':<28} {'MACs, % of base':>15} {'one cell, here':>16}"
    for row in what.rows:
        if row.macs is None:
            yield f"{row.schedule:<24} {row.method:<28} {'unreachable':>15}"
        else:
            time = duration(what.seconds(row.macs, row.epochs)) if row.epochs else "off the shelf"
            yield f"{row.schedule:<24} {row.method:<28} {100 * row.macs / what.base_macs:>15.1f} {time:>16}"
    yield ""
    yield from _estimates(what)


def _workers(what: Forecast) -> int:
    """By how much the workers of a CPU are faster than one. On a GPU that they share, nobody knows before."""
    return what.plan.recipe.workers if what.device.type == "cpu" else 1


def _estimates(what: Forecast) -> Iterator[str]:
    rate = what.images_per_second * FORWARD_PASSES * what.base_macs  # multiply-adds per second
    here = what.train_macs / rate / _workers(what)
    yield f"training altogether: {what.train_macs:.3g} multiply-adds (counted)"
    yield (
        f"measured here: the base at {what.images_per_second:.4g} images/s over {TIMED} steps of {what.batch} images on"
        f" {environment.describe(what.device, torch.float32)['device']}"
    )
    if what.device.type == "cuda":
        yield f"estimated: {duration(here)} on this GPU, {duration(here / 8)} on 8 of them if they scale evenly"
    else:
        slow, fast = (what.train_macs * 2 / flops for flops in GPU_FLOPS)
        low, high = (flops / 1e12 for flops in GPU_FLOPS)
        yield f"estimated: {duration(here)} on this machine"
        yield f"estimated: {duration(fast)} to {duration(slow)} on 1 data-centre GPU,"
        yield f"           {duration(fast / 8)} to {duration(slow / 8)} on 8 of them, with the"
        yield f"           {low:g} to {high:g} TFLOP/s that an H100 reached on other models, and even scaling"
    yield "not included: evaluation, latency samples, reading and decoding images, compilation"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"
