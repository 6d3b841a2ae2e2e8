"""Quantiles: of Student's t distribution, and of samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

LEVEL = 0.95  # of all intervals


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
