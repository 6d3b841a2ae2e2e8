"""Means with Student's t intervals, and a percentile of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import isnan, nan, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """mean ± half_width of n values, in their unit; NaN if not known."""

    mean: float
    half_width: float
    n: int


def interval(values: Iterable[float]) -> Interval:
    """The 95 % interval of a mean on n - 1 degrees of freedom. NaN values are left out."""
    known = [float(value) for value in values if not isnan(value)]
    if len(known) < 2:
        return Interval(known[0] if known else nan, nan, len(known))
    t = t_quantile(len(known) - 1, (1 + LEVEL) / 2)
    return Interval(fmean(known), t * stdev(known) / sqrt(len(known)), len(known))


@cache
def t_quantile(df: float, p: float) -> float:
    """The quantile p of Student's t distribution with `df` degrees of freedom."""
    from scipy.special import stdtrit  # scipy.stats takes far longer to import

    return round(float(stdtrit(df, p)), 9)  # versions of scipy differ in the eleventh digit


def t_quantiles(df: np.ndarray, p: float) -> np.ndarray:
    """`t_quantile` for many degrees of freedom, [P]; NaN where they are NaN."""
    from scipy.special import stdtrit

    return np.round(stdtrit(df, p), 9)


def percentile_95(samples: Sequence[float]) -> float:
    """The 95th percentile, interpolated linearly as by numpy's default."""
    ordered = sorted(samples)
    low, part = divmod(0.95 * (len(ordered) - 1), 1)
    lower = ordered[int(low)]
    upper = ordered[min(int(low) + 1, len(ordered) - 1)]
    return lower + part * (upper - lower)
