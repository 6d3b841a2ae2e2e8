"""Phrases that several sentences of a report share."""

from __future__ import annotations

from tpbench.report.estimates import Estimate
from tpbench.report.layout import fixed


def counted(number: int, word: str) -> str:
    """A number with its noun: "1 row", "2 rows"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def are(number: int) -> str:
    """The verb for a number of things: "is" or "are"."""
    return "is" if number == 1 else "are"


def points(difference: Estimate) -> str:
    """A difference in points with its 95 % interval, if it has one: "+1.2 points [+0.3, +2.1]"."""
    low, high = (fixed(end, 1, "+") for end in difference.bounds())
    return f"{fixed(difference.value, 1, '+')} points" + (f" [{low}, {high}]" if difference.known else "")
