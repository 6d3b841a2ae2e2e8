"""The terminal's table: the comparison in 120 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from tpbench.report import bands
from tpbench.report.layout import Column, Row, sections, terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

GAP = 2  # characters between columns
PIPE_WIDTH = 140  # characters at least, where the output is no terminal
DISPENSABLE = (
    "Off the shelf",
    "Tokens",
    "Schedule",
    "tokens",
    "GMACs",
    "off the",
    "ms at",
    "rank",
    "to base",
    "MACs",
)  # left out in this order
NOTE = "± is the half-width of the 95 % interval over seeds; a rank is the range of places that paired intervals leave"


def show(frame: pd.DataFrame, console: Console, by: str = "schedule") -> None:
    """Print comparisons, one table per machine and schedule, or per band of cost.

    Away from a terminal the console is widened to fit.
    """
    for machine, own in frame.groupby("machine", sort=False):
        groups = list(sections(own) if by == "schedule" else bands.banded(own, by))
        columns = terminal(own) if by == "schedule" else bands.columns(own)
        widths = _widths([row for _, rows in groups for row in rows], columns)
        if not console.is_terminal:
            console.width = max(console.width, PIPE_WIDTH, _total(widths))
        shown = _fitting(widths, console.width)
        _print(console, f"\n{machine}, recipe {own['recipe'].iloc[0]}\n")
        for title, rows in groups:
            _print(console, _table(title, rows, shown))
            _print(console, "")
        for row in own[own["error"] != ""].to_dict("records"):
            _print(console, f"{row['method']}, {row['schedule']}: {row['error']}")
        hidden = [f"{column.head} {column.unit}".strip() for column in widths if column not in shown]
        _print(console, NOTE + (f"; not shown at this width: {', '.join(hidden)}" if hidden else ""))


def _widths(rows: list[Row], columns: list[Column]) -> dict[Column, int]:
    """Characters that every column needs over all schedules, so that their tables line up."""
    return {
        column: max(len(column.head), len(column.unit), *(len(column.text(row)) for row in rows)) for column in columns
    }


def _fitting(widths: dict[Column, int], room: int) -> dict[Column, int]:
    """The columns that fit: on a narrow terminal some are left out, so that no number is ever broken."""
    shown = dict(widths)
    for head in DISPENSABLE:
        for column in [column for column in widths if column.head == head]:
            if _total(shown) > room:
                del shown[column]
    return shown


def _total(widths: dict[Column, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _table(schedule: str, rows: list[Row], widths: dict[Column, int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, GAP - 1, 0, 0)}
    table = Table(title=Text(schedule, style="bold"), title_justify="left", **look)
    for column, width in widths.items():
        justify = "left" if column.head.lower() in ("method", "schedule", "tokens") else "right"
        head = Text(f"{column.head}\n{column.unit}")
        table.add_column(head, justify=justify, min_width=width, no_wrap=True)
    for row in rows:
        style = "dim" if row["unreduced"] else "bold" if row["stands_alone"] else ""
        table.add_row(*(Text(column.text(row)) for column in widths), style=style)
    return table


def _print(console: Console, what: RenderableType) -> None:
    """Print without reading markup into names and reasons."""
    console.print(what, markup=False, highlight=False)
