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
    """mean ± half_width over n values, in the values' unit; what cannot be known is NaN."""

    mean: float
    half_width: float
    n: int


def interval(values: Iterable[float]) -> Interval:
    """The 95 % interval of a mean, n - 1 degrees of freedom. NaN values are left out."""
    known = [float(value) for value in values if not isnan(value)]
    if len(known) < 2:
        return Interval(known[0] if known else nan, nan, len(known))
    t = t_quantile(len(known) - 1, (1 + LEVEL) / 2)
    return Interval(fmean(known), t * stdev(known) / sqrt(len(known)), len(known))


@cache
def t_quantile(df: float, p: float) -> float:
    """The value that Student's t with `df` degrees of freedom stays below with probability p."""
    from scipy.special import stdtrit  # scipy.stats takes far longer to import

    return round(float(stdtrit(df, p)), 9)  # scipy's versions differ in the eleventh digit


def t_quantiles(df: np.ndarray, p: float) -> np.ndarray:
    """[P] the same for many degrees of freedom; NaN where they are NaN."""
    from scipy.special import stdtrit

    return np.round(stdtrit(df, p), 9)


def percentile_95(samples: Sequence[float]) -> float:
    """The 95th percentile, linear between neighbours as numpy's default is."""
    ordered = sorted(samples)
    low, part = divmod(0.95 * (len(ordered) - 1), 1)
    lower = ordered[int(low)]
    upper = ordered[min(int(low) + 1, len(ordered) - 1)]
    return lower + part * (upper - lower)
