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
from tpbench.report.standings import OFF_THE_SHELF

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
    shown_first = fullest(comparison)
    schedules = [schedule for schedule in comparison.tables if schedule in shown_first]
    rows = dict(_rows(comparison, schedules))
    if len(schedules) < 2 or not rows:
        return None
    references = {comparison.tables[schedule].reference for schedule in schedules}
    reference = references.pop() if len(references) == 1 else "the reference of the budget"
    return Overview(
        heads=["Method", "Family", *_heads(comparison, schedules)],
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
    order = "Methods are in the order of their mean over the budgets that most of them have; others follow."
    return ["### All budgets", "", f"{found.about} {order}", "", *found.table()]


def _heads(comparison: Comparison, schedules: list[str]) -> list[str]:
    """The budgets; where only some were fine-tuned, the others say that they were not."""
    stages = {schedule: comparison.tables[schedule].stage for schedule in schedules}
    mixed = len(set(stages.values())) > 1
    untrained = {schedule for schedule, stage in stages.items() if mixed and stage == OFF_THE_SHELF}
    return [f"`{schedule}`" + (", off the shelf" if schedule in untrained else "") for schedule in schedules]


def _rows(comparison: Comparison, schedules: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The base, then the methods that have an accuracy at any budget.

    They are ordered by their mean over the budgets that most of them have; those that lack one of these come last.
    """
    by_method: dict[str, dict[str, Row]] = {}
    for row in comparison.rows:
        if row["count"] != "masked" and row["family"] != NULL and not isnan(_top1(comparison, row)):
            by_method.setdefault(row["method"], {})[row["schedule"]] = row
    bases = {row["method"]: row for row in comparison.rows if row["unreduced"]}
    for name, row in bases.items():
        stages = [comparison.tables[schedule].stage for schedule in schedules]
        yield name, [escape(name), "", *(fixed(row[f"{stage}_top1_percent"], 1) for stage in stages)]

    shown = {name: rows for name, rows in by_method.items() if name not in bases and rows.keys() & set(schedules)}
    usual = [text for text in schedules if 2 * sum(text in rows for rows in shown.values()) > len(shown)] or schedules

    def place(name: str) -> tuple[int, float]:
        known = [text for text in usual if text in shown[name]]
        budgets = known or [text for text in schedules if text in shown[name]]
        return -len(known), -fmean(_top1(comparison, shown[name][text]) for text in budgets)

    for name in sorted(shown, key=place):
        cells = [_cell(comparison, shown[name].get(schedule)) for schedule in schedules]
        yield name, [escape(name), next(iter(shown[name].values()))["family"], *cells]


def _cell(comparison: Comparison, row: Row | None) -> str:
    if row is None:
        return ""
    return fixed(_top1(comparison, row), 1) + MARKS.get(row["verdict"], "")


def _top1(comparison: Comparison, row: Row) -> float:
    """The accuracy that the row's table compares, in percent; for the base, fine-tuned where it was."""
    stage = comparison.stage if row["unreduced"] else comparison.tables[row["schedule"]].stage
    return row[f"{stage}_top1_percent"]
