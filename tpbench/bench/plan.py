"""What to run and where: cells, and the plan that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tpbench.recipe import Recipe
from tpbench.registry import Variant
from tpbench.schedule import Schedule


class Cell(NamedTuple):
    """One row's one seed."""

    variant: Variant
    schedule: Schedule
    seed: int

    def __str__(self) -> str:
        return f"{self.variant} {self.schedule.text} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What to run, where."""

    recipe: Recipe
    cells: tuple[Cell, ...]
    out: Path
    device: str  # auto | cpu | cuda
    plugins: tuple[str, ...] = ()  # files of methods outside every package
    deadline: float | None = None  # seconds of time.monotonic(), at which work stops between two steps
