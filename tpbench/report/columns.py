"""The columns of a comparison. Each is declared once: name, heading, meaning, unit, value and text.

CSV files, readable tables, the terminal and the meanings in OUT/README.md are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tpbench.report import accuracy_columns, cost_columns, timed_columns
from tpbench.report.column import Column, significant_p
from tpbench.report.statistics import Difference


def all_columns(batches: Sequence[int | str], timed: Sequence[int | str] = ()) -> list[Column]:
    """Every column of a comparison, in the order of its CSV file; those of latency for every batch size.

    timed: the batch sizes of the timing session.
    """
    return [*accuracy_columns.columns(), *cost_columns.columns(batches), *timed_columns.columns(timed)]


def meanings(timed: bool = False) -> dict[str, str]:
    """Every column's name and meaning, those of a timing session too; B stands for a batch size."""
    return {column.name: column.meaning for column in all_columns("B", "B" if timed else ())}


def chosen(names: Iterable[str], batches: Sequence[int | str], timed: Sequence[int | str] = ()) -> list[Column]:
    """The columns of these names, in this order."""
    known = {column.name: column for column in all_columns(batches, timed)}
    return [known[name] for name in names]


# ------------------------------------------------------------------------------------------ pairs of methods


class PairColumn(NamedTuple):
    """A column of MACHINE-pairs.csv: its value from a difference and its p-value after Holm."""

    name: str
    meaning: str
    value: Callable[[Difference, float], Any]


PAIRS = (
    PairColumn("method_a", "one method", lambda pair, _: pair.a),
    PairColumn("method_b", "the other", lambda pair, _: pair.b),
    PairColumn(
        "difference_points",
        "top-1 of a minus b, percentage points, by the linear model; fine-tuned, or off the shelf where nothing was",
        lambda pair, _: pair.value,
    ),
    PairColumn(
        "half_width_points",
        "half-width of its 95 % interval over seeds and, where outcomes are known, images; not corrected",
        lambda pair, _: pair.half_width(),
    ),
    PairColumn(
        "p_holm", "two-sided p-value, by Holm over the table's pairs; ranks go by it", lambda _, p: significant_p(p)
    ),
    PairColumn("n", "seeds that both have", lambda pair, _: pair.seeds),
)
