"""Rows of all schedules grouped by cost: by MACs, or by measured latency. EXPLANATION defines bands and places."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, isnan
from typing import NamedTuple

import pandas as pd

from tpbench.report.columns import chosen
from tpbench.report.frame import Comparison, batch_sizes
from tpbench.report.layout import Row, Shown

WIDTH = 0.1  # width of a band, as a share of the unreduced model's cost
EXPLANATION = (
    "A band holds all rows whose cost, as a share of the unreduced model's, rounds to the same multiple of ten "
    "percent. Each method appears in a band once, with its most accurate row; its place is 1 + the number of methods "
    "above it. A row shows its places in both groupings, so that a method that wins by MACs and loses by latency is "
    "visible. Places are by the mean and do not take the intervals into account."
)


class Axis(NamedTuple):
    """A cost to group rows by: its name on the command line, its column, and its name in titles."""

    name: str
    column: str
    what: str


def axes(frame: pd.DataFrame) -> dict[str, Axis]:
    """The groupings that are possible for a comparison frame, by name."""
    found = [Axis("macs", "macs_share", "multiply-adds")]
    if batches := batch_sizes(frame):
        found.append(Axis("latency", f"latency_b{max(batches)}_ratio", f"latency at batch {max(batches)}"))
    return {axis.name: axis for axis in found}


def banded(comparison: Comparison, by: str) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of one machine's comparison, from the cheapest band on; the most accurate row comes first.

    Rows have an entry `places`: for each axis, (place, number of methods in the band).
    """
    every = axes(comparison.frame)
    top1 = comparison.top1
    rows = [row for row in comparison.rows if not row["unreduced"] and _known(row, top1)]
    bands = {name: _bands(rows, axis, top1) for name, axis in every.items()}

    def with_places(row: Row) -> Row:
        return row | {"places": {name: _place(row, bands[name], axis=every[name], top1=top1) for name in every}}

    for band in sorted(bands[by]):
        best = sorted(bands[by][band].values(), key=lambda row: -row[top1])
        low = (band - 0.5) * WIDTH
        high = (band + 0.5) * WIDTH
        title = f"{low:.0%} to {high:.0%} of the unreduced model's {every[by].what}"
        yield title, [with_places(row) for row in best]


def columns(frame: pd.DataFrame) -> list[Shown]:
    """The columns of a grouped table."""
    names = ["method", "schedule", "tokens_achieved", "macs_share"]
    names += [axis.column for name, axis in axes(frame).items() if name == "latency"]
    names += ["off_the_shelf_top1_percent", "fine_tuned_top1_percent"]
    declared = [Shown(c.head, c.unit, c.text) for c in chosen(names, batch_sizes(frame))]
    places = [
        Shown("Place", f"by {name}", lambda row, name=name: _ordinal(row["places"][name])) for name in axes(frame)
    ]
    return declared + places


def _known(row: Row, top1: str) -> bool:
    return not isnan(row["macs_share"]) and not isnan(row[top1])


def _band(row: Row, axis: Axis) -> int:
    return floor(row[axis.column] / WIDTH + 0.5)


def _bands(rows: list[Row], axis: Axis, top1: str) -> dict[int, dict[str, Row]]:
    """The most accurate row of each method in each band."""
    bands: dict[int, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row[top1]):
        if not isnan(row[axis.column]):
            bands.setdefault(_band(row, axis), {})[row["method"]] = row
    return bands


def _place(row: Row, bands: dict[int, dict[str, Row]], axis: Axis, top1: str) -> tuple[int, int] | None:
    if isnan(row[axis.column]):
        return None
    rivals = bands[_band(row, axis)]
    above = sum(other[top1] > row[top1] for method, other in rivals.items() if method != row["method"])
    return 1 + above, len(rivals)


def _ordinal(place: tuple[int, int] | None) -> str:
    return "" if place is None else f"{place[0]} of {place[1]}"
