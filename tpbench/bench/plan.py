"""The plan of a benchmark: which methods, schedules and seeds run, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tpbench.recipe import Recipe
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule, parse

NOTHING_REDUCED = parse("none")


class Cell(NamedTuple):
    """One method at one schedule with one seed: what one record describes."""

    variant: Variant
    schedule: Schedule
    seed: int

    def __str__(self) -> str:
        return f"{self.variant} {self.schedule.text} seed {self.seed}"

    @property
    def needs_latency(self) -> bool:
        """Whether the cell's token counts must first be found by measuring latency."""
        return self.schedule.kind is Kind.LATENCY


@dataclass(frozen=True)
class Plan:
    """What to run and where. The unreduced base runs once for every seed, at the schedule `none`."""

    recipe: Recipe
    out: Path
    device: str  # auto | cpu | cuda
    variants: tuple[Variant, ...] = ()
    reducing_schedules: tuple[Schedule, ...] = ()
    seeds: int = 0
    plugins: tuple[str, ...] = ()  # files with methods outside every package
    deadline: float | None = None  # seconds of time.monotonic() at which work stops between two steps
    deterministic: bool = False  # whether torch computes with deterministic algorithms alone
    holes: bool = False  # whether a cell may record that its method cannot meet its budget; otherwise it is refused

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules in the order in which they run: first `none`, if a method keeps every token."""
        first = (NOTHING_REDUCED,) if self.methods_at(NOTHING_REDUCED) else ()
        return first + self.reducing_schedules

    def methods_at(self, schedule: Schedule) -> tuple[Variant, ...]:
        """The methods that run at a schedule: the base at `none`, the others wherever tokens are reduced.

        The recipe's reference comes first, so that a run that was stopped has something to compare with. A variant that
        differs by its fine-tuning seed alone runs where it is fine-tuned.
        """
        unreduced = schedule == NOTHING_REDUCED
        own = [variant for variant in self.variants if variant.card.unreduced == unreduced]
        own = [v for v in own if "finetune_seed" not in dict(v.settings) or self.finetune_epochs(v, schedule)]
        return tuple(sorted(own, key=lambda variant: str(variant) != self.recipe.reference))

    def finetune_epochs(self, variant: Variant, schedule: Schedule) -> int:
        """The epochs of fine-tuning of a row; 0 where it is evaluated off the shelf alone."""
        return self.recipe.finetune_epochs(str(variant), schedule.text)

    def runs_early(self, variant: Variant, schedule: Schedule) -> bool:
        """Whether a row runs before the fine-tuned ones: the unreduced model, or evaluated off the shelf alone."""
        return variant.card.unreduced or not self.finetune_epochs(variant, schedule)

    def rows(self) -> Iterator[tuple[Variant, Schedule]]:
        """Every method at every schedule: the rows of the table."""
        for schedule in self.schedules:
            for variant in self.methods_at(schedule):
                yield variant, schedule

    def is_timed(self, variant: Variant) -> bool:
        """Whether a variant takes part in the timing session.

        Two kinds do not: variants that differ by their fine-tuning seed alone, whose speed is that of the original,
        and those with live=True, whose counts differ from seed to seed.
        """
        own = self.recipe.knobs.get(variant.method, {}) | dict(variant.settings)
        return own.get("finetune_seed", 0) == 0 and not own.get("live", False)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell, in the order in which `tpbench.bench.runner.benchmark` runs them."""
        early = [row for row in self.rows() if self.runs_early(*row)]
        later = [row for row in self.rows() if not self.runs_early(*row)]
        return tuple(Cell(variant, schedule, seed) for seed in range(self.seeds) for variant, schedule in early + later)
