"""The columns of a comparison. Each is declared once: name, heading, meaning, unit, value and text.

CSV files, readable tables, the terminal and the meanings in OUT/README.md are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tpbench.report import accuracy_columns, cost_columns, timed_columns
from tpbench.report.column import Column, significant_p
from tpbench.report.estimates import Differences


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
    """A column of MACHINE-pairs.csv: its values from the differences of a table and their p-values after Holm."""

    name: str
    meaning: str
    values: Callable[[Differences, Sequence[float]], list[Any]]


PAIRS = (
    PairColumn("method_a", "one method", lambda pairs, _: pairs.a),
    PairColumn("method_b", "the other", lambda pairs, _: pairs.b),
    PairColumn(
        "difference_points",
        "top-1 of a minus b, percentage points, by the linear model; fine-tuned, or off the shelf where nothing was",
        lambda pairs, _: pairs.value.tolist(),
    ),
    PairColumn(
        "half_width_points",
        "half-width of its 95 % interval over seeds and, where outcomes are known, images; not corrected",
        lambda pairs, _: pairs.half_widths().tolist(),
    ),
    PairColumn(
        "p_holm",
        "two-sided p-value, by Holm over the table's pairs; ranks go by it",
        lambda _, adjusted: [significant_p(p) for p in adjusted],
    ),
    PairColumn("n", "seeds that both have", lambda pairs, _: pairs.seeds.tolist()),
)
