"""Estimates with Student's t intervals and p-values: single ones, and many differences at once as arrays.

Shapes: P differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import numpy as np

from tpbench.report.interval import LEVEL, t_quantile, t_quantiles

POWER = 0.8
MIN_DF = 2  # degrees of freedom below which no interval is given


class StudentT:
    """Student's t-tests, of one estimate or of many at once: the three attributes are numbers or arrays [P].

    Results have the same form. P-values are NaN where there is no interval.
    """

    value: Any
    standard_error: Any
    df: Any

    @property
    def known(self) -> Any:
        """Whether there is an interval: at least MIN_DF degrees of freedom and a positive standard error."""
        return (self.df >= MIN_DF) & (self.standard_error > 0) & (self.value == self.value)

    def p_above(self, bound: float) -> Any:
        """The one-sided p-value of the hypothesis that the true value is at most `bound`."""
        return self._t_cdf(bound - self.value)

    def p_below(self, bound: float) -> Any:
        """The one-sided p-value of the hypothesis that the true value is at least `bound`."""
        return self._t_cdf(self.value - bound)

    def _t_cdf(self, distance: Any) -> Any:
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.where(self.known, stdtr(self.df, np.divide(distance, self.standard_error)), nan)
        return p if p.ndim else p.item()


@dataclass(frozen=True)
class Estimate(StudentT):
    """A value in percent or points, its standard error, and the degrees of freedom of that error.

    NaN means that it cannot be estimated. There is no interval below MIN_DF degrees of freedom, and none for a residual
    of exactly zero: an interval of ±0.00 would only show that few values happen to agree.
    """

    value: float
    standard_error: float
    df: float
    seeds: int

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the two-sided interval, by Student's t."""
        return t_quantile(self.df, (1 + level) / 2) * self.standard_error if self.known else nan

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the two-sided interval."""
        half_width = self.half_width(level)
        return self.value - half_width, self.value + half_width

    def p_value(self, null: float = 0.0) -> float:
        """The two-sided p-value of the hypothesis that the true value is `null`."""
        return 2 * min(self.p_below(null), self.p_above(null))

    def detectable(self, comparisons: int = 1, level: float = LEVEL, power: float = POWER) -> float:
        """The smallest true difference from zero that a two-sided test at 1 - level detects with this power.

        Computed from the noncentral t distribution. Several comparisons are corrected by Bonferroni, the first step of
        Holm's procedure.
        """
        if not self.known:
            return nan
        from scipy.special import nctdtrinc

        critical = t_quantile(self.df, 1 - (1 - level) / (2 * comparisons))
        smallest = round(float(nctdtrinc(self.df, 1 - power, critical)), 6)  # scipy's versions differ in later digits
        return smallest * self.standard_error


@dataclass(frozen=True)
class MeanTop1(Estimate):
    """The mean of a row over the table's seeds, percent.

    The interval covers the residual alone, as Loftus and Masson (1994) propose for rows that share their seeds, and
    serves to compare rows. Additive.seed_sd says how far other seeds would move all rows together.
    The ends are clipped to [0, 100]. The true mean lies there, so clipping preserves the coverage exactly; an interval
    on the logit scale would preserve it only approximately and is undefined for a row at 100 %.
    """

    method: str

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the two-sided interval, within [0, 100]."""
        low, high = super().bounds(level)
        return float(np.clip(low, 0, 100)), float(np.clip(high, 0, 100))


@dataclass(frozen=True)
class Difference(Estimate):
    """Row a minus row b, paired by seed, in points."""

    a: str
    b: str


# ------------------------------------------------------------------------------------------ many at once


@dataclass(frozen=True, eq=False)
class Differences(StudentT, Sequence[Difference]):
    """Many differences as arrays of shape [P]: one call tests all of them, with the results of each `Difference`."""

    a: list[str]
    b: list[str]
    value: np.ndarray
    standard_error: np.ndarray
    df: np.ndarray
    seeds: np.ndarray

    @staticmethod
    def of(several: Sequence[Difference]) -> Differences:
        """A sequence of differences as arrays."""
        if isinstance(several, Differences):
            return several
        return Differences(
            a=[own.a for own in several],
            b=[own.b for own in several],
            value=np.array([own.value for own in several], dtype=float),
            standard_error=np.array([own.standard_error for own in several], dtype=float),
            df=np.array([own.df for own in several], dtype=float),
            seeds=np.array([own.seeds for own in several], dtype=int),
        )

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, place: int) -> Difference:
        return Difference(
            value=float(self.value[place]),
            standard_error=float(self.standard_error[place]),
            df=float(self.df[place]),
            seeds=int(self.seeds[place]),
            a=self.a[place],
            b=self.b[place],
        )

    def part(self, first: int, last: int) -> Differences:
        """The differences from index `first` up to, but not including, `last`."""
        own = slice(first, last)
        return Differences(
            a=self.a[own],
            b=self.b[own],
            value=self.value[own],
            standard_error=self.standard_error[own],
            df=self.df[own],
            seeds=self.seeds[own],
        )

    def half_widths(self, level: float = LEVEL) -> np.ndarray:
        """[P] half the width of the two-sided intervals."""
        return t_quantiles(np.where(self.known, self.df, nan), (1 + level) / 2) * self.standard_error

    def p_values(self) -> np.ndarray:
        """[P] two-sided p-values of the hypotheses that the true values are 0; NaN where there is no interval."""
        return 2 * np.minimum(self.p_below(0.0), self.p_above(0.0))


# ------------------------------------------------------------------------------------------ sums of variances


def combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The standard error and Satterthwaite's degrees of freedom of a sum of independent estimates of variance.

    parts: (variance, degrees of freedom) of each.
    """
    variance = sum(part for part, _ in parts)
    if not variance > 0 or min(df for _, df in parts) <= 0:
        return (0.0 if variance == 0 else nan), 0.0
    return sqrt(variance), variance**2 / sum(part**2 / df for part, df in parts)


def combined_pairs(
    first: np.ndarray, first_df: np.ndarray, second: np.ndarray, second_df: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`combined` for P sums of two estimates each: [P] standard errors and [P] degrees of freedom.

    A second estimate of zero is left out of its sum.
    """
    present = second != 0
    variance = first + second
    least_df = np.where(present, np.minimum(first_df, second_df), first_df)
    known = (variance > 0) & (least_df > 0)
    spread = first[known] ** 2 / first_df[known]
    spread += np.where(present[known], second[known] ** 2 / np.where(present, second_df, 1.0)[known], 0.0)
    standard_error = np.where(variance == 0, 0.0, nan)
    standard_error[known] = np.sqrt(variance[known])
    df = np.zeros(len(variance))
    df[known] = variance[known] ** 2 / spread
    return standard_error, df
