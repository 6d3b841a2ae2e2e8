"""The p-values of many estimates at once: the same numbers as those of every `Estimate`, by one call for all."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np

from tpbench.report.statistics import Estimate


def different(estimates: Sequence[Estimate]) -> np.ndarray:
    """[P] two-sided p-values of the hypotheses that the true values are 0; NaN where there is no interval."""
    return 2 * np.minimum(below(estimates, 0.0), above(estimates, 0.0))


def above(estimates: Sequence[Estimate], bound: float) -> np.ndarray:
    """[P] one-sided p-values of the hypotheses that the true values are at most `bound`."""
    df, value, standard_error = _known(estimates)
    return _t_cdf(df, (bound - value) / standard_error)


def below(estimates: Sequence[Estimate], bound: float) -> np.ndarray:
    """[P] one-sided p-values of the hypotheses that the true values are at least `bound`."""
    df, value, standard_error = _known(estimates)
    return _t_cdf(df, (value - bound) / standard_error)


def _known(estimates: Sequence[Estimate]) -> np.ndarray:
    """[3, P] degrees of freedom, values and standard errors."""
    unknown = (nan, nan, nan)
    rows = [(own.df, own.value, own.standard_error) if own.known else unknown for own in estimates]
    return np.array(rows, dtype=float).reshape(-1, 3).T


def _t_cdf(df: np.ndarray, t: np.ndarray) -> np.ndarray:
    from scipy.special import stdtr

    return stdtr(df, t)
