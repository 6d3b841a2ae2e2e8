"""A column of a comparison, and the source of its values."""

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
    """The source of a row: its seeds' cells, the statistics of its table, and facts about its machine.

    machine_seeds: the number of seeds of all records of the machine. timed: the row's speed in the timing session, by
    batch size.
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
        """The mean over seeds of a quantity, or of its ratio to another one; NaN if nothing was measured."""
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

    name, meaning: in CSV files, where the meaning states the unit. value: unrounded, from the source of a row.
    head, unit: the two lines of its heading in readable tables; columns without a head appear only in CSV files.
    text: a row's value in readable tables; brief, brief_unit: value and unit in the first table.
    narrow: whether the column also appears in LaTeX tables, which are at most 500 points wide.
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


def shared_column(name: str, meaning: str, **shown: Any) -> Column:
    """A column whose value is the same for all seeds of a row. shown: further fields of the Column."""
    return Column(name, meaning, lambda source: source.first[name], **shown)


def significant_p(p: float) -> float:
    """A p-value rounded to six digits, since versions of scipy differ in later ones."""
    return float(f"{p:.6g}")
