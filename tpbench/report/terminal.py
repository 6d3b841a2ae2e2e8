"""The report on a terminal: findings, then one table per schedule or band of cost, at most 100 characters wide."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from tpbench.report import bands, first
from tpbench.report.findings import findings
from tpbench.report.frame import Comparison
from tpbench.report.layout import Row, Shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

GAP = 2  # characters between columns
WIDTH = 100  # characters at most
DISPENSABLE = (  # columns that are left out on narrow terminals, in this order
    "Off the shelf",
    "Tokens",
    "MACs",
    "Place",
    "Verdict",
    "Schedule",
    "Batch",
    "Time",
)
TEXT_COLUMNS = ("Method", "Schedule", "Tokens", "Verdict")


def show(comparisons: Sequence[Comparison], console: Console, by: str = "schedule") -> None:
    """Print the findings and tables of every machine, grouped by schedule or by cost ("macs", "latency").

    If the output is not a terminal, lines are as wide as long names need.
    """
    for comparison in comparisons:
        _print(console, f"\n{comparison.machine}, recipe {comparison.records[0].recipe}\n")
        for sentence in findings(comparison):
            _print(console, fill(f"- {sentence}", line_width(console), subsequent_indent="  "))
        _print(console, "")
        if by == "schedule":
            _by_schedule(comparison, console)
        else:
            _by_cost(comparison, console, by)


def _by_schedule(comparison: Comparison, console: Console) -> None:
    for section in first.sections(comparison):
        columns = [Shown(column.head, column.short_unit, column.short) for column in section.columns]
        tabulate(console, title=section.title, columns=columns, groups=section.groups)
        for note in section.notes:
            _note(console, note)
        _print(console, "")
    for remark in first.remarks(comparison):
        _note(console, remark)


def _by_cost(comparison: Comparison, console: Console, by: str) -> None:
    columns = [column for column in bands.columns(comparison.frame) if column.head != "Tokens"]
    for title, rows in bands.banded(comparison, by):
        tabulate(console, title=title, columns=columns, groups=[("", rows)])
        _print(console, "")


def line_width(console: Console) -> int:
    """The width of a line in characters: that of the terminal, at most WIDTH."""
    return min(WIDTH, console.width) if console.is_terminal else WIDTH


def _note(console: Console, text: str) -> None:
    _print(console, fill(text, line_width(console)))


def tabulate(
    console: Console, title: str, columns: Sequence[Shown], groups: Sequence[tuple[str, Sequence[Row]]]
) -> None:
    """Print a table of (family, rows), without the columns that do not fit into a line."""
    widths = _widths([row for _, rows in groups for row in rows], columns)
    widths[columns[0]] = max([widths[columns[0]], *(len(family) for family, _ in groups)])
    shown = _fitting(widths, line_width(console))
    if not console.is_terminal:
        console.width = max(console.width, _total(shown))
    _print(console, _table(title, groups, shown))
    hidden = [f"{column.head} {column.unit}".strip() for column in widths if column not in shown]
    if hidden:
        _note(console, f"Not shown at this width: {', '.join(hidden)}.")


def _widths(rows: Sequence[Row], columns: Sequence[Shown]) -> dict[Shown, int]:
    """The width of every column in characters."""
    return {
        column: max(len(column.head), len(column.unit), *(len(column.text(row)) for row in rows)) for column in columns
    }


def _fitting(widths: dict[Shown, int], most: int) -> dict[Shown, int]:
    """The columns that fit into a line; others are left out, so that no number is split across lines."""
    shown = dict(widths)
    for head in DISPENSABLE:
        for column in [column for column in widths if column.head.startswith(head)]:
            if _total(shown) > most:
                del shown[column]
    return shown


def _total(widths: dict[Shown, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _table(title: str, groups: Sequence[tuple[str, Sequence[Row]]], widths: dict[Shown, int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, GAP - 1, 0, 0)}
    table = Table(title=Text(title, style="bold"), title_justify="left", **look)
    for column, width in widths.items():
        justify = "left" if column.head in TEXT_COLUMNS else "right"
        table.add_column(Text(f"{column.head}\n{column.unit}"), justify=justify, min_width=width, no_wrap=True)
    for family, rows in groups:
        if family:
            table.add_row(Text(family, style="italic"))
        for row in rows:
            style = "dim" if row["unreduced"] else "bold" if row["stands_alone"] else ""
            table.add_row(*(Text(column.text(row)) for column in widths), style=style)
    return table


def _print(console: Console, what: RenderableType) -> None:
    """Print text literally, since names and reasons may look like markup."""
    console.print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))
