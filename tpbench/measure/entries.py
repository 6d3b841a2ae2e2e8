"""The rows of a timing session: one model and its reduced forms, by batch size, dtype and mode.

Weights, images and all tokens have the dtype of the row, as in a deployed model; nothing is cast during the pass.
Shapes: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from tpbench import registry, vit
from tpbench.errors import UsageError, explain_out_of_memory
from tpbench.measure.images import Images
from tpbench.measure.modes import Mode
from tpbench.measure.timings import TIMM, Key, Row
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule

Call = Callable[[], object]
Reduce = Callable[[nn.Module, Variant, Schedule], vit.TokenViT]
Solved = Mapping[tuple[Variant, Schedule], Schedule | str]  # share of latency -> counts that meet it, or why none do

EAGER = Mode()
NOTHING = Schedule("none")


def reduced(model: nn.Module, variant: Variant, schedule: Schedule, site: str = "mid") -> vit.TokenViT:
    """A model reduced by a variant. Settings that the variant does not name have their defaults."""
    settings = {"site": site} | dict(variant.settings)
    return vit.reduce(model, variant.method, schedule, **settings)


@dataclass(frozen=True)
class Subject:
    """The model that a session times: an unreduced timm model on its device, how to reduce it, and images.

    weights: where the model's weights come from, in words. images: enough for the largest batch.
    """

    name: str
    weights: str
    model: nn.Module
    images: Images
    reduce: Reduce = reduced

    @property
    def about(self) -> dict:
        """The source, number, shape and fingerprint of the images."""
        return self.images.about

    @property
    def where(self) -> torch.device:
        """The device that the images are on."""
        return self.images.pixels.device

    def in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the unreduced model with weights of a dtype."""
        return copy.deepcopy(self.model).to(dtype).eval()


@dataclass(frozen=True)
class Grid:
    """The rows of a session: every variant at every schedule (unreduced ones once), batch size, dtype and mode.

    timm's unreduced model is also timed in each mode. without_counts: pairs that are left out.
    """

    variants: tuple[Variant, ...]
    schedules: tuple[Schedule, ...]
    batch_sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    modes: tuple[Mode, ...] = (EAGER,)
    without_counts: frozenset[tuple[Variant, Schedule]] = frozenset()

    @property
    def solved_at(self) -> tuple[torch.dtype, int, Mode]:
        """The conditions at which shares of latency are met: the first dtype, the largest batch and the last mode."""
        return self.dtypes[0], max(self.batch_sizes), self.modes[-1]

    def pairs(self) -> Iterator[tuple[Variant, Schedule]]:
        """Every method at every schedule that applies to it; unreduced methods come first."""
        for schedule in (NOTHING, *(s for s in self.schedules if s.blocks)):
            for variant in self.variants:
                applies = variant.card.unreduced == (schedule == NOTHING)
                if applies and (variant, schedule) not in self.without_counts:
                    yield variant, schedule


@dataclass
class Entry:
    """A row to be timed, and a function that makes its call."""

    row: Row
    make: Callable[[], Call] = field(repr=False)

    def warm(self, calls: int) -> Call:
        """Make the row's call and run it `calls` times. Raises UsageError if memory runs out."""
        remedy = "choose smaller --batch-sizes"
        with explain_out_of_memory("in timing", self.row.batch, remedy, kind=UsageError):
            call = self.make()
            for _ in range(calls):
                call()
        return call


def keys(grid: Grid) -> list[Key]:
    """The keys of a grid's rows, without building any model."""
    found = []
    for dtype, batch in product(grid.dtypes, grid.batch_sizes):
        where = {"batch": batch, "dtype": name_of(dtype)}
        found += [Key(TIMM, "none", mode=str(mode), role=role, **where) for mode, role in roles(grid.modes)]
        for mode, (variant, schedule) in product(grid.modes, grid.pairs()):
            found.append(Key(str(variant), schedule.text, mode=str(mode), role="reduced", **where))
    return found


def entries(subject: Subject, grid: Grid, solved: Solved | None = None) -> list[Entry]:
    """All rows of a grid with their references and, for each batch size and dtype, one control.

    A method that cannot be built at a schedule gives a row with the reason as its error.
    """
    check(subject, grid)
    found: list[Entry] = []
    known = solved or {}
    methods = [
        MethodAtSchedule(subject, variant=variant, schedule=schedule, solved=known.get((variant, schedule)))
        for variant, schedule in grid.pairs()
    ]
    for dtype in grid.dtypes:
        base = subject.in_dtype(dtype)
        models = [method.model(base) for method in methods]
        for batch in grid.batch_sizes:
            images = subject.images.pixels[:batch].to(dtype)
            found += unreduced(subject, base, images=images, modes=grid.modes)
            for mode in grid.modes:
                here = (dtype, batch, mode) == grid.solved_at
                for method, model in zip(methods, models):
                    found.append(method.entry(model, images=images, mode=mode, solved_here=here))
    return found


def require_some(found: Sequence[Entry]) -> None:
    """Raise UsageError, with the first reason, if no method can be built."""
    reasons = [entry.row.error for entry in found if entry.row.role == "reduced"]
    if all(reasons):
        raise UsageError(reasons[0])


def check(subject: Subject, grid: Grid) -> None:
    """Raise UsageError, before any work, for unsupported models, unknown settings and blocks that do not exist."""
    vit.check_supported(subject.model)
    for schedule in grid.schedules:
        schedule.check(len(subject.model.blocks))
    for mode in grid.modes:
        mode.check(subject.where)
    for variant in grid.variants:
        settings = {name: value for name, value in variant.settings if name != "site"}
        registry.configure(registry.method(variant.method), settings)


def unreduced(subject: Subject, model: nn.Module, images: Tensor, modes: Sequence[Mode]) -> list[Entry]:
    """timm's own model in every mode, and once more in the first mode as the control."""
    macs = sum(vit.reduce(subject.model, "none").macs().values())
    about = {"method": TIMM, "schedule": "none", "macs": macs}
    return [entry(model, images, mode, role=role, **about) for mode, role in roles(modes)]


def roles(modes: Sequence[Mode]) -> list[tuple[Mode, str]]:
    """(mode, role) of the rows of timm's own model."""
    return [*((mode, "reference") for mode in modes), (modes[0], "control")]


def entry(model: nn.Module | None, images: Tensor, mode: Mode, **about: object) -> Entry:
    """One row to time: a model on images [B, C, H, W] in a mode. about: the other fields of `timings.Row`."""
    row = Row(batch=len(images), dtype=name_of(images.dtype), mode=str(mode), **about)
    return Entry(row, lambda: mode.call(model, images))


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


class MethodAtSchedule:
    """One method at one schedule: its counts, found once for all dtypes, or the reason why there are none.

    solved: the counts that meet a share of latency, or why there are none. Making one reduces the subject's model once.
    """

    def __init__(self, subject: Subject, variant: Variant, schedule: Schedule, solved: Schedule | str | None = None):
        self.subject = subject
        self.variant = variant
        self.schedule = schedule
        self.error = solved if isinstance(solved, str) else None
        self.asked = solved if isinstance(solved, Schedule) else schedule
        self.counts: list[int] = []
        self.macs = 0
        if self.error is None:
            try:
                self.counts = [k for _, k in self.first.achieved]
                self.macs = sum(self.first.macs().values())
            except UsageError as error:
                self.error = str(error)

    @cached_property
    def first(self) -> vit.TokenViT:
        """The reduced model as requested, before its counts are fixed."""
        return self.subject.reduce(self.subject.model, self.variant, self.asked)

    def model(self, base: nn.Module) -> nn.Module | None:
        """A base reduced by the method to these counts, in the base's dtype; None if there is an error."""
        if self.error is not None:
            return None
        requested = [k for _, k in self.first.requested]
        schedule = self.asked.with_counts(requested) if requested else self.asked
        own = self.subject.reduce(base, self.variant, schedule)
        return own.to(next(base.parameters()).dtype)

    def entry(self, model: nn.Module | None, images: Tensor, mode: Mode, solved_here: bool) -> Entry:
        """The row of a model. solved_here: whether shares of latency were solved under the conditions of this row."""
        by_latency = solved_here and self.schedule.kind is Kind.LATENCY
        return entry(
            model,
            images,
            mode,
            method=str(self.variant),
            schedule=self.schedule.text,
            counts=self.counts,
            macs=self.macs,
            asked=float(self.schedule.budget) if by_latency else None,
            error=self.error,
        )
