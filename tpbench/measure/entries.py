"""The rows of a timing session: one model and its reduced forms, by batch size, dtype and mode.

A dtype is that of the weights, the images and all tokens, as a deployed model has it; nothing is cast in the pass.
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
Solved = Mapping[tuple[Variant, Schedule], Schedule | str]  # shares of latency -> their counts, or why there are none

EAGER = Mode()
NOTHING = Schedule("none")


def reduced(model: nn.Module, variant: Variant, schedule: Schedule, site: str = "mid") -> vit.TokenViT:
    """A model reduced by a variant, with the settings of that alone."""
    settings = {"site": site} | dict(variant.settings)
    return vit.reduce(model, variant.method, schedule, **settings)


@dataclass(frozen=True)
class Subject:
    """What a session times: an unreduced timm model on its device, how it is reduced, and images for the largest batch.

    weights says in words where the model's weights come from.
    """

    name: str
    weights: str
    model: nn.Module
    images: Images
    reduce: Reduce = reduced

    @property
    def about(self) -> dict:
        """What the images are: source, number, shape and fingerprint."""
        return self.images.about

    @property
    def where(self) -> torch.device:
        """The device that the images are on."""
        return self.images.pixels.device

    def in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """The unreduced model with weights of a dtype."""
        return copy.deepcopy(self.model).to(dtype).eval()


@dataclass(frozen=True)
class Grid:
    """Which rows: every variant at every schedule (unreduced ones once), batch size and dtype, in each of the modes.

    timm's unreduced model is timed in each of `modes` too.
    """

    variants: tuple[Variant, ...]
    schedules: tuple[Schedule, ...]
    batch_sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    modes: tuple[Mode, ...] = (EAGER,)

    @property
    def solved_at(self) -> tuple[torch.dtype, int, Mode]:
        """Where shares of latency are met: at the first dtype, the largest batch and the last mode."""
        return self.dtypes[0], max(self.batch_sizes), self.modes[-1]

    def pairs(self) -> Iterator[tuple[Variant, Schedule]]:
        """Every method at every schedule that it runs at, what reduces nothing first."""
        for schedule in (NOTHING, *(s for s in self.schedules if s.blocks)):
            for variant in self.variants:
                if variant.card.unreduced == (schedule == NOTHING):
                    yield variant, schedule


@dataclass
class Entry:
    """A row to be timed, and how its call is made."""

    row: Row
    make: Callable[[], Call] = field(repr=False)

    def warm(self, calls: int) -> Call:
        """The call, compiled where its mode says so, after so many calls. Raises UsageError where memory runs out."""
        remedy = "choose smaller --batch-sizes"
        with explain_out_of_memory("in timing", self.row.batch, remedy, kind=UsageError):
            call = self.make()
            for _ in range(calls):
                call()
        return call


def keys(grid: Grid) -> list[Key]:
    """The rows of a grid by name alone."""
    found = []
    for dtype, batch in product(grid.dtypes, grid.batch_sizes):
        where = {"batch": batch, "dtype": name_of(dtype)}
        found += [Key(TIMM, "none", mode=str(mode), role=role, **where) for mode, role in roles(grid.modes)]
        for mode, (variant, schedule) in product(grid.modes, grid.pairs()):
            found.append(Key(str(variant), schedule.text, mode=str(mode), role="reduced", **where))
    return found


def entries(subject: Subject, grid: Grid, solved: Solved | None = None) -> list[Entry]:
    """Every row of a grid with its references and, for every batch size and dtype, one control.

    A method that cannot be built at a schedule leaves a row with the reason.
    """
    check(subject, grid)
    found: list[Entry] = []
    plans = [
        Plan(subject=subject, variant=variant, schedule=schedule, solved=(solved or {}).get((variant, schedule)))
        for variant, schedule in grid.pairs()
    ]
    for dtype in grid.dtypes:
        model = subject.in_dtype(dtype)
        models = [plan.model(model) for plan in plans]
        for batch in grid.batch_sizes:
            images = subject.images.pixels[:batch].to(dtype)
            found += unreduced(subject, model, images=images, modes=grid.modes)
            for mode in grid.modes:
                here = (dtype, batch, mode) == grid.solved_at
                found += [plan.entry(own, images, mode, here) for plan, own in zip(plans, models)]
    return found


def require_some(found: Sequence[Entry]) -> None:
    """Raise UsageError, with the first reason, where no method can be built."""
    reasons = [entry.row.error for entry in found if entry.row.role == "reduced"]
    if all(reasons):
        raise UsageError(reasons[0])


def check(subject: Subject, grid: Grid) -> None:
    """Refuse what no row can do, before any work: unsupported models, unknown settings, blocks that do not exist."""
    vit.check_supported(subject.model)
    for schedule in grid.schedules:
        schedule.check(len(subject.model.blocks))
    for mode in grid.modes:
        mode.check(subject.where)
    for variant in grid.variants:
        settings = {name: value for name, value in variant.settings if name != "site"}
        registry.configure(registry.method(variant.method), settings)


def unreduced(subject: Subject, model: nn.Module, images: Tensor, modes: Sequence[Mode]) -> list[Entry]:
    """timm's own model in every mode, and once more in the first: the control."""
    macs = sum(vit.reduce(subject.model, "none").macs().values())
    about = {"method": TIMM, "schedule": "none", "macs": macs}
    return [entry(model, images, mode, role=role, **about) for mode, role in roles(modes)]


def roles(modes: Sequence[Mode]) -> list[tuple[Mode, str]]:
    """The rows of timm's own model."""
    return [*((mode, "reference") for mode in modes), (modes[0], "control")]


def entry(model: nn.Module | None, images: Tensor, mode: Mode, **about: object) -> Entry:
    """One row to time: a model on images [B, C, H, W] in a mode, and what the row is called by."""
    row = Row(batch=len(images), dtype=name_of(images.dtype), mode=str(mode), **about)
    return Entry(row, lambda: mode.call(model, images))


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


class Plan:
    """One method at one schedule: its counts, found once for all dtypes, or the reason why it has none."""

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
        """The model as the plan was asked for, before its counts are fixed."""
        return self.subject.reduce(self.subject.model, self.variant, self.asked)

    def model(self, base: nn.Module) -> nn.Module | None:
        """The method on a base of any dtype; its own parameters take that dtype too."""
        if self.error is not None:
            return None
        requested = [k for _, k in self.first.requested]
        schedule = self.asked.counting(requested) if requested else self.asked
        own = self.subject.reduce(base, self.variant, schedule)
        return own.to(next(base.parameters()).dtype)

    def entry(self, model: nn.Module | None, images: Tensor, mode: Mode, solved_here: bool) -> Entry:
        """solved_here: whether a share of latency, if one is asked for, was solved in just these circumstances."""
        by_latency = solved_here and self.schedule.kind is Kind.LATENCY
        share = self.schedule.budget if by_latency else None
        about = {"method": str(self.variant), "schedule": self.schedule.text, "counts": self.counts}
        about |= {"macs": self.macs, "asked": None if share is None else float(share), "error": self.error}
        return entry(model, images, mode, **about)
