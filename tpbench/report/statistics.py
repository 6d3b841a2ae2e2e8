"""The statistics of the tables: one linear model, outcome ~ method + seed, for the rows of one table.

top-1 of method m with seed s, in percent:   y[m, s] = method[m] + seed[s] + residual[m, s]

All methods use the same seeds (split, base weights, order of images), so a seed's own effect cancels in a difference
and only the residual remains. One pair of methods estimates the residual on S - 1 degrees of freedom (Student's paired
t); M methods together estimate it on (M - 1)(S - 1). With three seeds and many methods, the critical value falls from
4.3 to 2.0.

A pooled residual is right only if the rows scatter alike. An untrained row can scatter several times as much as the
others. The pooled residual is then too large for the ordinary rows and too small for that one: in a simulation where 3
of 20 rows scatter five times as much, false positives are 0.1 % among the ordinary rows and 40 % among the three.
Therefore a row leaves the pool if Cochran's test for an outlying variance (ISO 5725-2) rejects it, the largest variance
first, and keeps a scatter of its own. The test only selects a model, so its level is lenient: 10 % over the rows of a
step. If all rows scatter alike, this adds at most 0.6 points to the 5 % of false positives. Limit: with 5 seeds, a row
that scatters twice as much often goes undetected, and two such rows are called different in 13 % of the draws. A recipe
may also declare the pool.

A difference to a row outside the pool has Student's paired t of these two rows alone. A base can suit some methods
badly and others not: in the digits study, two of 24 bases cost every selection by attention 15 points. Differences of
such rows vary far less than the rows; the sum of the rows' own variances (Welch) would overlook that, and where
one row gains what another loses it would be too small. Rows with different seeds are still compared by that sum
(Satterthwaite's degrees of freedom).

M methods, S seeds
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import isnan, nan, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tpbench.errors import UsageError
from tpbench.report.estimates import POWER, Difference, Differences, Estimate, MeanTop1, combined, combined_pairs
from tpbench.report.least_squares import DECIMALS, Fit, Scatter, least_squares, own_scatter, pooled_rows

if TYPE_CHECKING:
    import pandas as pd

# ------------------------------------------------------------------------------------------ the model


class _Scatters(NamedTuple):
    """Arrays [M]: whether a row is apart from the pool, its residual variance, and the degrees of freedom of that."""

    apart: np.ndarray
    variance: np.ndarray
    df: np.ndarray


@dataclass(frozen=True, eq=False)
class Additive:
    """outcome ~ method + seed, fitted by least squares. `fit` returns one.

    pooled: the residual that the rows of `pool` share; apart: the scatter of every other row by itself.
    fitted: the least-squares fit of all rows.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    values: np.ndarray  # [M, S] percent, NaN where not measured
    pooled: Scatter
    apart: dict[str, Scatter]
    seed_sd: float  # points, of the effect that a seed has on all rows alike; NaN where it cannot be estimated
    fitted: Fit = field(repr=False)

    @property
    def pool(self) -> tuple[str, ...]:
        """The methods that share the pooled residual."""
        return tuple(method for method in self.methods if method not in self.apart)

    def mean(self, method: str) -> MeanTop1:
        """A row's mean over all seeds of the table; the model predicts the values of missing seeds."""
        self._row(method)
        return self.means[method]

    @cached_property
    def means(self) -> dict[str, MeanTop1]:
        """The means of all rows by method. Rows that were measured with every seed are computed at once."""
        rows = self._scatters
        counts = self.fitted.counts
        zeros = np.zeros(len(counts))
        value = self.fitted.plain_means()
        standard_error, df = combined_pairs(rows.variance / counts, first_df=rows.df, second=zeros, second_df=zeros)
        for row in np.flatnonzero(counts < len(self.seeds)).tolist():
            value[row], standard_error[row], df[row] = self._estimate(
                {row: 1.0}, np.full(len(self.seeds), 1 / len(self.seeds))
            )
        value = np.clip(value, 0, 100)
        return {
            method: MeanTop1(
                value=float(value[row]),
                standard_error=float(standard_error[row]),
                df=float(df[row]),
                seeds=int(counts[row]),
                method=method,
            )
            for row, method in enumerate(self.methods)
        }

    def difference(self, a: str, b: str) -> Difference:
        """Row a minus row b. Rows without a common seed are compared through rows that share seeds with both."""
        return self.differences([(a, b)])[0]

    def differences(self, pairs: Collection[tuple[str, str]] | None = None) -> Differences:
        """The differences of the given pairs; by default of all pairs of rows, in the rows' order."""
        pairs = list(combinations(self.methods, 2) if pairs is None else pairs)
        for a, b in pairs:
            if a == b:
                raise UsageError(f"the difference of {a} to itself")
        first = np.array([self._row(a) for a, _ in pairs], dtype=int)
        second = np.array([self._row(b) for _, b in pairs], dtype=int)
        value = self.fitted.plain_differences(first, second)
        standard_error, df = self._plain_spread(first, second)
        seeds = self.fitted.counts[first]
        for number in np.flatnonzero(~self.fitted.same_seeds(first, second)):
            a = int(first[number])
            b = int(second[number])
            value[number], standard_error[number], df[number] = self._estimate(
                {a: 1.0, b: -1.0}, np.zeros(len(self.seeds))
            )
            seeds[number] = ((self.fitted.shares[a] > 0) & (self.fitted.shares[b] > 0)).sum()
        return Differences(
            a=[a for a, _ in pairs],
            b=[b for _, b in pairs],
            value=value,
            standard_error=standard_error,
            df=df,
            seeds=seeds,
        )

    def detectable(self, comparisons: int = 1) -> float:
        """The smallest difference, in points, between two complete rows of the pool that this table can detect.

        Two-sided at 5 %, power 0.8; several comparisons are corrected as in Holm's first step.
        """
        standard_error = self.pooled.sd * sqrt(2 / len(self.seeds))
        return Estimate(0.0, standard_error=standard_error, df=self.pooled.df, seeds=len(self.seeds)).detectable(
            comparisons
        )

    def summary(self) -> str:
        """One sentence with the model, its n and the smallest detectable difference."""
        what = f"top-1 ~ method + seed over {len(self.methods)} rows and {len(self.seeds)} seeds"
        if isnan(self.detectable()):
            return f"{what}: too few cells for an interval"
        parts = [
            f"residual SD {self.pooled.sd:.2f} points on {self.pooled.df:.0f} degrees of freedom",
            f"smallest detectable difference {self.detectable():.2f} points (two-sided 5 %, power {POWER})",
        ]
        own = ", ".join(f"{method} ({scatter.sd:.2f})" for method, scatter in self.apart.items())
        return f"{what}: {'; '.join(parts)}" + (f"; rows with a residual SD of their own: {own}" if own else "")

    # -------------------------------------------------------------------------------------- contrasts

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {method: row for row, method in enumerate(self.methods)}

    @cached_property
    def _scatters(self) -> _Scatters:
        own = [self.apart.get(method, self.pooled) for method in self.methods]
        return _Scatters(
            apart=np.array([method in self.apart for method in self.methods]),
            variance=np.array([scatter.sd**2 for scatter in own]),
            df=np.array([scatter.df for scatter in own]),
        )

    def _row(self, method: str) -> int:
        if method not in self._rows:
            raise UsageError(f"no row {method!r} in this table; it has {', '.join(self.methods)}")
        return self._rows[method]

    def _plain_spread(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The spread of P differences of rows that were measured with the same seeds: [P] standard errors, [P] df.

        Two rows of the pool share its residual. A pair with a row apart has the residual of its own differences.
        """
        rows = self._scatters
        weight = 1 / self.fitted.counts[first]
        pooled = ~rows.apart[first] & ~rows.apart[second]
        standard_error, df = combined_pairs(
            np.where(pooled, 2 * weight, weight) * rows.variance[first],
            first_df=rows.df[first],
            second=np.where(pooled, 0.0, weight * rows.variance[second]),
            second_df=rows.df[second],
        )
        own = np.flatnonzero(~pooled & (self.fitted.counts[first] > 1) & self.fitted.same_seeds(first, second))
        sd = np.round(np.nanstd(self.values[first[own]] - self.values[second[own]], axis=1, ddof=1), DECIMALS)
        own = own[sd > 0]  # rows that differ alike at every seed keep the sum of both variances
        standard_error[own] = sd[sd > 0] * np.sqrt(weight[own])
        df[own] = self.fitted.counts[first[own]] - 1
        return standard_error, df

    def _estimate(self, of_rows: dict[int, float], of_seeds: np.ndarray) -> tuple[float, float, float]:
        """A contrast's value, standard error and degrees of freedom (Satterthwaite's if scatters differ).

        of_rows: the nonzero coefficients of the methods' effects, by row; of_seeds: [S] the coefficients of the seeds.
        """
        estimate = self.fitted.contrast(of_rows, of_seeds)
        if estimate is None:
            return nan, nan, 0.0
        value, weights = estimate
        standard_error, df = self._spread(weights)
        return value, standard_error, df

    def _spread(self, weights: dict[int, float]) -> tuple[float, float]:
        """The standard error and degrees of freedom of a contrast.

        weights: by row, the sum of the squared weights of the row's cells.
        """
        kept = 0.0
        parts = []
        for row, weight in weights.items():
            scatter = self.apart.get(self.methods[row])
            if scatter is None:
                kept += weight
            else:
                parts.append((weight * scatter.sd**2, scatter.df))
        if kept > 0:
            parts.insert(0, (kept * self.pooled.sd**2, self.pooled.df))
        return combined(parts)


def fit(top1: pd.DataFrame, pool: Collection[str] | None = None) -> Additive:
    """Fit the model to a table: rows are methods, columns are seeds, values top-1 in percent, NaN where not measured.

    pool: the rows that may share one residual; by default all. Rows and columns without a value are left out. A table
    of one row has Student's interval. Raises UsageError for a table without a value, a row or seed that occurs twice,
    values outside [0, 100], and a pool with unknown names or fewer than two measured rows.
    """
    _refuse(top1, pool)
    table = top1.to_numpy(dtype=float)
    measured = ~np.isnan(table)
    rows = measured.any(axis=1)
    columns = measured.any(axis=0)
    values = table[np.ix_(rows, columns)]
    methods = tuple(top1.index[rows])
    declared = [row for row, method in enumerate(methods) if pool is None or method in pool]
    if len(declared) < min(2, len(methods)):
        raise UsageError("a pool needs two rows that were measured; the declared one has fewer")
    kept, pooled, effects = pooled_rows(values, declared)
    apart = {methods[row]: own_scatter(values[row] - effects.seed) for row in set(range(len(methods))) - set(kept)}
    return Additive(
        methods=methods,
        seeds=tuple(top1.columns[columns]),
        values=values,
        pooled=pooled if len(methods) > 1 else own_scatter(values[0]),
        apart=apart,
        seed_sd=effects.seed_sd(pooled),
        fitted=least_squares(values) if apart else effects,
    )


def _refuse(top1: pd.DataFrame, pool: Collection[str] | None) -> None:
    values = top1.to_numpy(dtype=float)
    for name, axis in (("row", top1.index), ("seed", top1.columns)):
        if not axis.is_unique:
            raise UsageError(f"the table has a {name} twice: {axis[axis.duplicated()][0]}")
    if np.isnan(values).all():
        raise UsageError("the table has no value to fit")
    if (values < 0).any() or (values > 100).any():
        raise UsageError("top-1 in percent lies between 0 and 100; the table has other values")
    strangers = sorted(set(pool or ()) - set(top1.index))
    if strangers:
        raise UsageError(f"the declared pool names rows that the table lacks: {', '.join(strangers)}")
