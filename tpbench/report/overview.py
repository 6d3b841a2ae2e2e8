"""One table of a whole study: a row for each method, a column for each budget, the accuracy that is compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import isnan
from statistics import fmean
from typing import NamedTuple

from tpbench.report.families import BETTER, WORSE
from tpbench.report.first import fullest
from tpbench.report.frame import Comparison
from tpbench.report.layout import Row, fixed
from tpbench.report.markdown import escape, table
from tpbench.report.methods import NULL

MARKS = {BETTER: " ▲", WORSE: " ▼"}


class Overview(NamedTuple):
    """The table: headings, rows by method, and a sentence about them."""

    heads: list[str]
    rows: dict[str, list[str]]
    about: str

    def table(self, methods: Collection[str] | None = None) -> list[str]:
        """The lines of the table, of all methods or of some."""
        return table(self.heads, [row for name, row in self.rows.items() if methods is None or name in methods], left=2)


def overview(comparison: Comparison) -> Overview | None:
    """The overview of the budgets that are shown first; None with fewer than two."""
    schedules = [schedule for schedule in comparison.tables if schedule in fullest(comparison)]
    rows = dict(_rows(comparison, schedules))
    if len(schedules) < 2 or not rows:
        return None
    references = {comparison.tables[schedule].reference for schedule in schedules}
    reference = references.pop() if len(references) == 1 else "the reference of the budget"
    return Overview(
        heads=["Method", "Family", *(f"`{schedule}`" for schedule in schedules)],
        rows=rows,
        about=(
            "Top-1 in percent, mean over seeds: fine-tuned at budgets where methods were, otherwise off the shelf."
            f" ▲: better than {reference}; ▼: worse, both after Holm's correction."
        ),
    )


def section(comparison: Comparison) -> list[str]:
    """The overview as a section of a report; empty with fewer than two budgets."""
    found = overview(comparison)
    if found is None:
        return []
    order = "Methods are in the order of their mean over these budgets."
    return ["### All budgets", "", f"{found.about} {order}", "", *found.table()]


def _rows(comparison: Comparison, schedules: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The base, then the methods that have an accuracy at any budget; first those that have one at every budget."""
    by_method: dict[str, dict[str, Row]] = {}
    for row in comparison.rows:
        if row["count"] != "masked" and row["family"] != NULL and not isnan(_top1(comparison, row)):
            by_method.setdefault(row["method"], {})[row["schedule"]] = row
    bases = {row["method"]: row for row in comparison.rows if row["unreduced"]}
    for name, row in bases.items():
        yield name, [escape(name), "", *([fixed(_top1(comparison, row), 1)] * len(schedules))]

    def place(name: str) -> tuple[int, float]:
        known = [_top1(comparison, row) for schedule, row in by_method[name].items() if schedule in schedules]
        return -len(known), -fmean(known or [0.0])

    for name in sorted(by_method.keys() - bases.keys(), key=place):
        own = by_method[name]
        cells = [_cell(comparison, own.get(schedule)) for schedule in schedules]
        if any(cells):
            yield name, [escape(name), next(iter(own.values()))["family"], *cells]


def _cell(comparison: Comparison, row: Row | None) -> str:
    if row is None:
        return ""
    return fixed(_top1(comparison, row), 1) + MARKS.get(row["verdict"], "")


def _top1(comparison: Comparison, row: Row) -> float:
    """The accuracy that the row's table compares, in percent; for the base, fine-tuned where it was."""
    stage = comparison.stage if row["unreduced"] else comparison.tables[row["schedule"]].stage
    return row[f"{stage}_top1_percent"]
