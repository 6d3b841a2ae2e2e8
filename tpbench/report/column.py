"""A column of a comparison, and what its values are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tpbench.report.estimates import Difference, Estimate
from tpbench.report.layout import Row
from tpbench.report.standings import UNKNOWN, Standings

if TYPE_CHECKING:
    from tpbench.measure.speeds import Speed

Cell = dict[str, Any]


class Source(NamedTuple):
    """What a row is made from: its seeds' cells, the statistics of its table, and what is known of its machine.

    timed: how fast the timing session found the row, by batch size.
    """

    cells: Sequence[Cell]
    table: Standings
    batches: Sequence[int]
    machine_seeds: int
    timed: Mapping[int, Speed] = MappingProxyType({})

    @property
    def first(self) -> Cell:
        """The cell of the first seed."""
        return self.cells[0]

    @property
    def method(self) -> str:
        """The name of the row."""
        return self.first["method"]

    def mean(self, name: str, over: str | None = None) -> float:
        """The mean over seeds of a quantity, or of its ratio to another; NaN where nothing was measured."""
        values = [cell[name] if over is None else cell[name] / cell[over] for cell in self.cells]
        known = [value for value in values if not isnan(value)]
        return fmean(known) if known else nan

    def top1(self, accuracy: str) -> Estimate:
        """The mean of an accuracy, percent."""
        return self.table.means.get(accuracy, {}).get(self.method, UNKNOWN)

    def to_reference(self) -> Difference | Estimate:
        """The difference to the reference; for a null row, to the row that it repeats."""
        judgement = self.table.judgement(self.method)
        return UNKNOWN if judgement is None else judgement.difference

    def to_base(self) -> Difference | Estimate:
        """The difference of the row to the base; UNKNOWN for the base itself."""
        return self.table.to_base.get(self.method, UNKNOWN)


@dataclass(frozen=True)
class Column:
    """One column.

    name, meaning: in CSV files, with the unit there. value: from what a row is made of, unrounded.
    head, unit: the two lines of its heading in readable tables; columns without a head are in CSV files alone.
    text: a row's value as readable tables show it; brief, brief_unit: the same in the first table.
    narrow: whether LaTeX, where a line holds 500 points, has it too.
    """

    name: str
    meaning: str
    value: Callable[[Source], Any]
    head: str = ""
    unit: str = ""
    text: Callable[[Row], str] = str
    brief: Callable[[Row], str] | None = None
    brief_unit: str = ""
    narrow: bool = True

    @property
    def heading(self) -> str:
        """The heading of the readable tables: the name with its unit."""
        return ", ".join(filter(None, (self.head, self.unit)))

    @property
    def short_unit(self) -> str:
        """The unit in the first table."""
        return self.brief_unit or self.unit

    def short(self, row: Row) -> str:
        """The row's value in the first table."""
        return (self.brief or self.text)(row)


def cell(name: str, meaning: str, **shown: Any) -> Column:
    """A column whose value all seeds share."""
    return Column(name, meaning, lambda source: source.first[name], **shown)


def significant_p(p: float) -> float:
    """A p-value to six digits: scipy's versions differ in later ones."""
    return float(f"{p:.6g}")
