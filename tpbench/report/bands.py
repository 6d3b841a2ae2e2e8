"""Rows grouped by what they cost, whatever their schedules: by MACs, and by the clock.

A band holds all rows whose cost, as a share of the unreduced model's, rounds to the same ten percent. In a band a
method stands once, by its most accurate row; its place is 1 + the number of methods above it. A row shows its places in
both groupings, so that a winner by MACs that loses by latency is seen. Places are by the mean; see the intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, isnan
from typing import NamedTuple

import pandas as pd

from tpbench.report.frame import batch_sizes
from tpbench.report.layout import Column, Row, fixed, plus_minus, tokens

WIDTH = 0.1  # of a band, as a share of the unreduced model's cost


class Axis(NamedTuple):
    """What rows are grouped by: the name on the command line, the column, and what to call it."""

    name: str
    column: str
    what: str


def axes(frame: pd.DataFrame) -> dict[str, Axis]:
    """The groupings that a comparison allows, by name."""
    found = [Axis("macs", "macs_share", "multiply-adds")]
    if batches := batch_sizes(frame):
        found.append(Axis("latency", f"latency_b{max(batches)}_ratio", f"latency at batch {max(batches)}"))
    return {axis.name: axis for axis in found}


def banded(frame: pd.DataFrame, by: str) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of one machine's comparison, from the cheapest band on; the most accurate row first.

    Rows carry `places`: for every axis (place, methods in its band there).
    """
    every, rows = axes(frame), [row for row in frame.to_dict("records") if not row["unreduced"] and _known(row)]
    bands = {name: _bands(rows, axis) for name, axis in every.items()}
    for band in sorted(bands[by]):
        best = sorted(bands[by][band].values(), key=lambda row: -accuracy(row))
        low, high = (band - 0.5) * WIDTH, (band + 0.5) * WIDTH
        title = f"{low:.0%} to {high:.0%} of the unreduced model's {every[by].what}"
        yield title, [row | {"places": {name: _place(row, bands[name], every[name]) for name in every}} for row in best]


def accuracy(row: Row) -> float:
    """Fine-tuned top-1, or off the shelf where nothing was fine-tuned; percent."""
    tuned = row["fine_tuned_top1_percent"]
    return row["off_the_shelf_top1_percent"] if isnan(tuned) else tuned


def columns(frame: pd.DataFrame) -> list[Column]:
    """The columns of a grouped table."""
    every = axes(frame)
    clock = every.get("latency")
    shown = [
        Column("Method", "", lambda row: row["method"]),
        Column("Schedule", "", lambda row: row["schedule"]),
        Column("Tokens", "kept", tokens),
        Column("MACs", "% of base", lambda row: fixed(100 * row["macs_share"], 1)),
        Column("Off the shelf", "top-1 %", lambda row: plus_minus(row, "off_the_shelf_top1_percent")),
        Column("Fine-tuned", "top-1 %", lambda row: plus_minus(row, "fine_tuned_top1_percent")),
    ]
    if clock:
        shown.insert(4, Column("Time", "% of base", lambda row: fixed(100 * row[clock.column], 1)))
    places = [Column("Place", f"by {name}", lambda row, name=name: _ordinal(row["places"][name])) for name in every]
    return shown + places


def _known(row: Row) -> bool:
    return not isnan(row["macs_share"]) and not isnan(accuracy(row))


def _band(row: Row, axis: Axis) -> int:
    return floor(row[axis.column] / WIDTH + 0.5)


def _bands(rows: list[Row], axis: Axis) -> dict[int, dict[str, Row]]:
    """The most accurate row of every method in every band."""
    bands: dict[int, dict[str, Row]] = {}
    for row in sorted(rows, key=accuracy):
        if not isnan(row[axis.column]):
            bands.setdefault(_band(row, axis), {})[row["method"]] = row
    return bands


def _place(row: Row, bands: dict[int, dict[str, Row]], axis: Axis) -> tuple[int, int] | None:
    if isnan(row[axis.column]):
        return None
    rivals = bands[_band(row, axis)]
    above = sum(accuracy(other) > accuracy(row) for method, other in rivals.items() if method != row["method"])
    return 1 + above, len(rivals)


def _ordinal(place: tuple[int, int] | None) -> str:
    return "" if place is None else f"{place[0]} of {place[1]}"
