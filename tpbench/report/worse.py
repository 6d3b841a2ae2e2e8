"""Which rows became worse by more than a threshold: what `tpbench compare A B --fail-above 2%` fails on.

With a threshold of 2 % a row of B counts as worse where one of these holds:

    accuracy   its top-1 is lower by more than 2 points: the one-sided test of "at most 2 points lower" rejects at 5 %,
               after Holm over all rows of the machine
    MACs       it takes more than 2 % more multiply-adds: a count, no test
    speed      its time relative to the unreduced model is longer by more than 2 %, by the same kind of test, after Holm
               over all timed rows of the machine; only where both sides hold timing sessions
    numbers    A measured it, and in B it failed or is unreachable

Rows that only one side has do not count, and neither do changes of tokens, which show in the MACs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import log

from tpbench.errors import UsageError
from tpbench.report.compare import A, B, Change, Changes, Slower
from tpbench.report.estimates import Estimate
from tpbench.report.families import ALPHA, holm
from tpbench.report.layout import fixed


def threshold(text: str) -> float:
    """The percent in "2%" or "0.5 %". UsageError for anything else, and where it is not positive."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--fail-above {text!r}: expected a positive percentage such as 2%")
    return float(match[1])


def worse(compared: Sequence[Changes], percent: float) -> list[str]:
    """What became worse by more than the threshold, a sentence each.

    UsageError where the two sides are of different recipes, since a change of the recipe is no regression, and where
    they have no row in common.
    """
    for changes in compared:
        if not changes.same_recipe:
            raise UsageError(
                f"--fail-above compares one recipe with itself; A is of {changes.recipes[0]}, B of {changes.recipes[1]}"
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
    timed = [(row, slower) for row in changes.rows for slower in row.slower]
    longer = holm([slower.log_time.p_above(log(1 + percent / 100)) for _, slower in timed])
    yield from (f"{row.name}: {speed(slower)}" for (row, slower), p in zip(timed, longer) if p <= ALPHA)
    for row in changes.rows:
        if B in row.no_numbers and A not in row.no_numbers:
            yield f"{row.name}: no numbers in B: {row.no_numbers[B]}"


def accuracy(row: Change) -> str:
    """The change of a row's accuracy with its interval."""
    return f"{row.name}: top-1 {points(row.difference)}"


def points(difference: Estimate) -> str:
    """A difference in points with its 95 % interval, if it has one."""
    low, high = (fixed(end, 1, "+") for end in difference.bounds())
    return f"{fixed(difference.value, 1, '+')} points" + (f" [{low}, {high}]" if difference.known else "")


def speed(slower: Slower) -> str:
    """The change of a row's time with its interval."""
    low, high = (fixed(end, 1, "+") for end in slower.bounds_percent)
    within = f" [{low}, {high}]" if slower.log_time.known else ""
    return f"time at {slower.group}, {slower.mode} {fixed(slower.percent, 1, '+')} %{within}"
