"""Which rows became worse by more than a threshold, so that `tpbench compare A B --fail-above 2%` fails.

With a threshold of 2 %, a row of B counts as worse in any of these cases:

    accuracy   its top-1 is lower by more than 2 points: the one-sided test of "at most 2 points lower" rejects at 5 %,
               after Holm over all rows of the machine
    MACs       it takes more than 2 % more multiply-adds; a count needs no test
    speed      its time relative to the unreduced model is longer by more than 2 %, by the same kind of test, after Holm
               over all timed rows of the machine; only if both sides hold timing sessions
    numbers    A measured it, and in B it failed or is unreachable, with any seed that both have

Rows that only one side has do not count. Changes of tokens do not count either, since they show in the MACs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import log

from tpbench.errors import UsageError
from tpbench.report.compare import A, B, Change, Changes, TimeChange
from tpbench.report.families import ALPHA, holm
from tpbench.report.layout import fixed
from tpbench.report.phrases import points


def threshold(text: str) -> float:
    """The number of percent in "2%" or "0.5 %". Raises UsageError for any other text, and unless it is positive."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--fail-above {text!r}: expected a positive percentage such as 2%")
    return float(match[1])


def worse(compared: Sequence[Changes], percent: float) -> list[str]:
    """A sentence for each row that became worse by more than the threshold.

    Raises UsageError if the two sides are of different recipes, since a change of the recipe is not a regression, and
    if they have no row in common.
    """
    for changes in compared:
        if not changes.same_recipe:
            raise UsageError(
                f"--fail-above needs the same recipe on both sides; A is {changes.recipes[0]}, B {changes.recipes[1]}"
            )
    if not any(changes.rows for changes in compared):
        raise UsageError("--fail-above has nothing to judge: A and B have no row in common")
    return [sentence for changes in compared for sentence in _worse(changes, percent)]


def _worse(changes: Changes, percent: float) -> Iterator[str]:
    judged = changes.judged
    lower = holm([row.difference.p_below(-percent) for row in judged])
    yield from (accuracy(row) for row, p in zip(judged, lower) if p <= ALPHA)
    for row in changes.rows:
        if row.macs_percent > percent:
            yield f"{row.name}: MACs {fixed(row.macs_percent, 1, '+')} %"
    timed = [(row, change) for row in changes.rows for change in row.times]
    longer = holm([change.log_ratio.p_above(log(1 + percent / 100)) for _, change in timed])
    yield from (f"{row.name}: {speed(change)}" for (row, change), p in zip(timed, longer) if p <= ALPHA)
    for row in changes.rows:
        if B in row.no_numbers and A not in row.no_numbers:
            yield f"{row.name}: no numbers in B: {row.no_numbers[B]}"
        if B in row.failed_seeds:
            yield f"{row.name}: no numbers in B with {listed_seeds(row.failed_seeds[B])}"


def listed_seeds(seeds: Sequence[int]) -> str:
    """The seeds in words: "seed 1", "seeds 1, 2"."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def accuracy(row: Change) -> str:
    """The change of a row's accuracy with its interval."""
    return f"{row.name}: top-1 {points(row.difference)}"


def speed(change: TimeChange) -> str:
    """A change of time with its interval."""
    low, high = (fixed(end, 1, "+") for end in change.bounds_percent)
    interval = f" [{low}, {high}]" if change.log_ratio.known else ""
    return f"time at {change.group}, {change.mode} {fixed(change.percent, 1, '+')} %{interval}"
