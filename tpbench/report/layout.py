"""Rounded texts of a row's numbers, and the grouping of rows into tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import ceil, floor, log10
from typing import Any, NamedTuple, TypeVar

import pandas as pd

LONG_LIST = 4  # longer lists of token counts are abbreviated
NEW_PARAMETERS = "†"  # marks beside a method's name
TEACHER = "‡"
STILL_FALLING = "↓"
STEEP = 0.05  # nats; if the training loss falls by more in the last epoch, the row is marked

Row = dict[str, Any]
T = TypeVar("T")


class Shown(NamedTuple):
    """A column of a readable table: a heading of two lines, and a function that gives the text of a row."""

    head: str
    unit: str
    text: Callable[[Row], str]

    @property
    def heading(self) -> str:
        """The heading in one line."""
        return ", ".join(filter(None, (self.head, self.unit)))


def spread_out(schedules: Sequence[T], most: int) -> list[T]:
    """All schedules, from costly to cheap, or `most` of them at equal distances, including the first and the last.

    Between two the later one is taken, which costs less and separates methods more.
    """
    if len(schedules) <= most:
        return list(schedules)
    return [schedules[ceil(number * (len(schedules) - 1) / (most - 1))] for number in range(most)]


# ------------------------------------------------------------------------------------------ numbers as text


def blank(value: Any) -> bool:
    """Whether a number is missing: None, NaN or pandas' NA."""
    return value is None or value is pd.NA or value != value


def fixed(value: Any, decimals: int, sign: str = "") -> str:
    """A number with `decimals` decimals, never as minus zero; an empty string for a blank."""
    return "" if blank(value) else f"{round(float(value), decimals) + 0.0:{sign}.{decimals}f}"


def significant(value: float, digits: int) -> str:
    """A number with `digits` significant digits and no exponent; an empty string for a blank."""
    if blank(value) or value == 0:
        return fixed(value, 0)
    return fixed(value, max(0, digits - 1 - floor(log10(abs(value)))))


def as_fixed(name: str, decimals: int, scale: float = 1.0) -> Callable[[Row], str]:
    """A function that gives a column's text: its number times `scale`, with `decimals` decimals."""
    return lambda row: fixed(scale * row[name], decimals)


def as_significant(name: str, digits: int) -> Callable[[Row], str]:
    """A function that gives a column's text: its number with `digits` significant digits."""
    return lambda row: significant(row[name], digits)


def as_interval(name: str, sign: str = "") -> Callable[[Row], str]:
    """A function that gives a column's text: mean ± half-width."""
    return lambda row: plus_minus(row, name, sign)


def as_short_interval(name: str, sign: str = "") -> Callable[[Row], str]:
    """A function that gives the interval with one decimal: "95.6 ±0.8", or "99.1 +0.9-1.2" if clipped at 100 %."""

    def text(row: Row) -> str:
        mean = row[name]
        half_width = row[half_width_of(name)]
        if blank(half_width):
            return fixed(mean, 1, sign)
        low, high = ends(row, name)
        up = fixed(high - mean, 1)
        down = fixed(mean - low, 1)
        if up != down:
            return f"{fixed(mean, 1, sign)} +{up}-{down}"
        return f"{fixed(mean, 1, sign)} ±{fixed(half_width, 1)}"

    return text


def plus_minus(row: Row, name: str, sign: str = "") -> str:
    """mean ± half-width; mean [low, high] if the interval is clipped at 0 or 100 %; the mean alone if there is none."""
    mean = row[name]
    half_width = row[half_width_of(name)]
    if blank(half_width):
        return fixed(mean, 2, sign)
    low, high = ends(row, name)
    if _cut(row, name):
        return f"{fixed(mean, 2)} [{fixed(low, 2)}, {fixed(high, 2)}]"
    return f"{fixed(mean, 2, sign)} ± {fixed(half_width, 2)}"


def ends(row: Row, name: str) -> tuple[float, float]:
    """The ends of an interval; for a share of images they are clipped to [0, 100] percent."""
    mean = row[name]
    half_width = row[half_width_of(name)]
    if _cut(row, name):
        return max(0.0, mean - half_width), min(100.0, mean + half_width)
    return mean - half_width, mean + half_width


def _cut(row: Row, name: str) -> bool:
    return name.endswith("_percent") and not row[half_width_of(name)] <= row[name] <= 100 - row[half_width_of(name)]


@cache
def half_width_of(name: str) -> str:
    """The name of the column that holds the half-width of a mean."""
    return re.sub("(_top1_percent|_points)$", "_half_width_points", name)


def rank(row: Row) -> str:
    """The best and worst rank that the data allow for a row: "2-5"."""
    best = fixed(row["rank"], 0)
    worst = fixed(row["rank_worst"], 0)
    return best if best == worst else f"{best}-{worst}"


def name_with_signs(row: Row) -> str:
    """The method's name with the signs of its footnotes: NEW_PARAMETERS, TEACHER, STILL_FALLING."""
    marks = [
        (NEW_PARAMETERS, row["new_parameters"] > 0),
        (TEACHER, row["teacher"]),
        (STILL_FALLING, row["loss_fall_nats"] > STEEP),
    ]
    return row["method"] + "".join(mark for mark, holds in marks if holds)


def tokens(row: Row) -> str:
    """The tokens achieved, the request if it differs, and the live tokens if only some are live."""
    live = f" ({brief(row['tokens_live'])} live)" if row["tokens_live"] else ""
    if row["unreduced"] or row["tokens_achieved"] == row["tokens_requested"]:
        return _achieved(row) + live
    return f"{_achieved(row)} of {'≤' if row['count'] == 'at_most' else ''}{brief(row['tokens_requested'])}{live}"


def _achieved(row: Row) -> str:
    return "all" if row["unreduced"] or row["count"] == "masked" else brief(row["tokens_achieved"])


def macs(row: Row) -> str:
    """The share of MACs, and the share without tokens that are padding or hidden."""
    live = fixed(100 * row["live_macs_share"], 1)
    return fixed(100 * row["macs_share"], 1) + (f" ({live} live)" if live else "")


def brief(counts: str) -> str:
    """Token counts; a long list is shortened to its ends and its length: "184..41 (12)"."""
    listed = counts.split(",")
    return counts if len(listed) <= LONG_LIST else f"{listed[0]}..{listed[-1]} ({len(listed)})"


def latency(batch: int | str) -> Callable[[Row], str]:
    """A function that gives milliseconds at a batch size: median (95th percentile)."""

    def text(row: Row) -> str:
        middle, late = (significant(row[f"latency_b{batch}_{name}_ms"], 3) for name in ("median", "p95"))
        return f"{middle} ({late})" if middle else middle

    return text


def seeds(row: Row) -> str:
    """The seeds measured, and the number expected if some failed."""
    n = row["seeds"]
    expected = row["seeds_expected"]
    return str(n) if n == expected else f"{n} of {expected}"


# ------------------------------------------------------------------------------------------ groups, failed rows


def groups(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """(schedule, rows) in the order of the rows; the base comes first, under its own schedule."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["schedule"], []).append(row)
    return list(found.items())


def sections(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """(schedule, rows) with the base at the top of every schedule; the base alone if there are no other rows."""
    rows = list(rows)
    base = [row for row in rows if row["unreduced"]]
    reduced = [row for row in rows if not row["unreduced"]]
    if not reduced:
        return groups(base)
    return [(schedule, base + own) for schedule, own in groups(reduced)]


def failure(row: Row) -> str:
    """The text of a row without numbers; an empty string for other rows."""
    if row["seeds"]:
        return ""
    if row["count"] == "masked":
        return "saves nothing: it masks tokens and removes none, so it cannot meet a budget"
    return row["error"] if row["error"].startswith("unreachable: ") else f"failed: {row['error']}"


def left_out(rows: Iterable[Row]) -> list[str]:
    """A line for each row of which only some seeds failed, with the reason."""
    failed = [row for row in rows if row["seeds"] > 0 and row["error"]]
    return [f"{row['method']}, {row['schedule']}: {row['error']}" for row in failed]
