"""The statistics of the tables: one linear model, outcome ~ method + seed, for the rows that share a table.

top-1 of method m with seed s, in percent:   y[m, s] = method[m] + seed[s] + residual[m, s]

All methods use the same seeds (split, base weights, order of images), so a seed's own effect cancels in a difference
and only the residual remains. One pair of methods estimates it on S - 1 degrees of freedom (Student's paired t); M
methods together estimate it on (M - 1)(S - 1). With three seeds that is the difference between t = 4.3 and t = 2.0.

A pooled residual is right only where the rows scatter alike. An untrained row can scatter several times as much as the
others, and then the pooled residual is too large for the ordinary rows and too small for that one: with three rows of
20 at five times the scatter, 0.1 % of false positives among the ordinary rows and 40 % among the three (simulated). A
row therefore leaves the pool where Cochran's test for an outlying variance (ISO 5725-2) rejects it, the largest first,
and keeps its own scatter (Welch and Satterthwaite). The test only selects a model, so its level is lenient: 10 % over
the rows of a step. Where all rows scatter alike this adds at most 0.6 points to the 5 % of false positives. Limit: a
row that scatters twice as much often goes undetected with 5 seeds, and two such rows are called different in 13 % of
the draws. A recipe may also declare the pool.

M methods, S seeds, N measured cells
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import isnan, nan, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tpbench.errors import UsageError
from tpbench.report.interval import LEVEL, t_quantile

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8
MIN_DF = 2  # degrees of freedom below which no interval is given
OUTLYING = 0.1  # level of Cochran's test, over the rows of one step
ESTIMABLE = 1e-8  # largest error of a contrast that the cells determine


@dataclass(frozen=True)
class Estimate:
    """A value in percent or points with its standard error and the degrees of freedom that this is known on.

    NaN is what cannot be known. Below MIN_DF degrees of freedom, and where the residual is exactly zero, there is no
    interval: a ±0.00 would be an accident of few values.
    """

    value: float
    standard_error: float
    df: float
    seeds: int

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.df >= MIN_DF and self.standard_error > 0 and not isnan(self.value)

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the two-sided interval, by Student's t."""
        return t_quantile(self.df, (1 + level) / 2) * self.standard_error if self.known else nan

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the two-sided interval."""
        half_width = self.half_width(level)
        return self.value - half_width, self.value + half_width

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided, of the hypothesis that the true value is `null`."""
        return 2 * min(self.p_below(null), self.p_above(null)) if self.known else nan

    def p_above(self, bound: float) -> float:
        """One-sided, of the hypothesis that the true value is at most `bound`: small where it lies above."""
        return _t_cdf(self.df, (bound - self.value) / self.standard_error) if self.known else nan

    def p_below(self, bound: float) -> float:
        """One-sided, of the hypothesis that the true value is at least `bound`: small where it lies below."""
        return _t_cdf(self.df, (self.value - bound) / self.standard_error) if self.known else nan

    def detectable(self, comparisons: int = 1, level: float = LEVEL, power: float = POWER) -> float:
        """The smallest true difference from zero that a two-sided test at 1 - level finds with this power.

        From the noncentral t distribution. With several comparisons: of Bonferroni, which is Holm's first step.
        """
        if not self.known:
            return nan
        from scipy.special import nctdtrinc

        critical = t_quantile(self.df, 1 - (1 - level) / (2 * comparisons))
        return float(nctdtrinc(self.df, 1 - power, critical)) * self.standard_error


@dataclass(frozen=True)
class MeanTop1(Estimate):
    """The mean of a row over the table's seeds, percent.

    The interval contains the residual alone, as Loftus and Masson (1994) propose for rows that share their seeds: it
    serves to compare rows. How far other seeds would move all rows together is Additive.seed_sd.
    The ends are clipped to [0, 100]. The true mean lies there, so clipping keeps the coverage exactly; an interval on
    the logit would keep it only nearly and is undefined for a row at 100 %.
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


class Scatter(NamedTuple):
    """The residual's standard deviation in points, and its degrees of freedom."""

    sd: float
    df: float


# ------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True, eq=False)
class Additive:
    """outcome ~ method + seed, fitted by least squares. `fit` makes one.

    pooled: the residual that the rows of `pool` share; apart: the scatter of every other row by itself.
    influence: [M + S, N], the weight of every cell in the least-squares estimate of every effect (minimum norm).
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    values: np.ndarray  # [M, S] percent, NaN where not measured
    pooled: Scatter
    apart: dict[str, Scatter]
    seed_sd: float  # points, of the effect that a seed has on all rows alike; NaN where it cannot be told
    influence: np.ndarray = field(repr=False)

    @property
    def pool(self) -> tuple[str, ...]:
        return tuple(method for method in self.methods if method not in self.apart)

    def mean(self, method: str) -> MeanTop1:
        """A row's mean over all seeds of the table; for seeds that it lacks, the model's prediction counts."""
        contrast = self._effect(method)
        contrast[len(self.methods) :] = 1 / len(self.seeds)
        value, standard_error, df = self._estimate(contrast)
        cells = int((~np.isnan(self.values[self._row(method)])).sum())
        return MeanTop1(float(np.clip(value, 0, 100)), standard_error, df, cells, method)

    def difference(self, a: str, b: str) -> Difference:
        """Row a minus row b. Rows without a common seed are compared through rows that share seeds with both."""
        if a == b:
            raise UsageError(f"the difference of {a} to itself")
        value, standard_error, df = self._estimate(self._effect(a) - self._effect(b))
        both = ~np.isnan(self.values[self._row(a)]) & ~np.isnan(self.values[self._row(b)])
        return Difference(value, standard_error, df, int(both.sum()), a, b)

    def differences(self, pairs: Collection[tuple[str, str]] | None = None) -> list[Difference]:
        """The differences of the given pairs; of any two rows once, in the rows' order, where none are given."""
        return [self.difference(a, b) for a, b in (combinations(self.methods, 2) if pairs is None else pairs)]

    def detectable(self, comparisons: int = 1) -> float:
        """The smallest difference, in points, between two complete rows of the pool that this table can detect.

        Two-sided at 5 %, power 0.8; with several comparisons at the level of Holm's first step.
        """
        standard_error = self.pooled.sd * sqrt(2 / len(self.seeds))
        return Estimate(0.0, standard_error, self.pooled.df, len(self.seeds)).detectable(comparisons)

    def summary(self) -> str:
        """The model, its n and the smallest difference it can see, in one sentence."""
        what = f"top-1 ~ method + seed over {len(self.methods)} rows and {len(self.seeds)} seeds"
        if isnan(self.detectable()):
            return f"{what}: too few cells for an interval"
        parts = [
            f"residual SD {self.pooled.sd:.2f} points on {self.pooled.df:.0f} degrees of freedom",
            f"smallest difference seen {self.detectable():.2f} points (two-sided 5 %, power {POWER})",
        ]
        own = ", ".join(f"{method} ({scatter.sd:.2f})" for method, scatter in self.apart.items())
        return f"{what}: {'; '.join(parts)}" + (f"; rows with a residual SD of their own: {own}" if own else "")

    # -------------------------------------------------------------------------------------- contrasts

    def _row(self, method: str) -> int:
        if method not in self.methods:
            raise UsageError(f"no row {method!r} in this table; it has {', '.join(self.methods)}")
        return self.methods.index(method)

    def _effect(self, method: str) -> np.ndarray:
        contrast = np.zeros(len(self.methods) + len(self.seeds))
        contrast[self._row(method)] = 1
        return contrast

    @cached_property
    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        return np.nonzero(~np.isnan(self.values))

    def _estimate(self, contrast: np.ndarray) -> tuple[float, float, float]:
        """A contrast's value, standard error and degrees of freedom (Satterthwaite's where rows scatter apart)."""
        rows, columns = self._cells
        weights = contrast @ self.influence  # [N]
        reached = np.concatenate(
            [
                np.bincount(rows, weights, len(self.methods)),
                np.bincount(columns, weights, len(self.seeds)),
            ]
        )
        if np.abs(reached - contrast).max() > ESTIMABLE:
            return nan, nan, 0.0
        shares = np.bincount(rows, weights**2, len(self.methods))  # of every row's variance
        kept = np.array([method not in self.apart for method in self.methods])
        parts = [(shares[kept].sum() * self.pooled.sd**2, self.pooled.df)] if shares[kept].sum() > ESTIMABLE**2 else []
        for method, scatter in self.apart.items():
            share = shares[self.methods.index(method)]
            if share > ESTIMABLE**2:
                parts.append((share * scatter.sd**2, scatter.df))
        standard_error, df = combined(parts)
        return float(weights @ self.values[rows, columns]), standard_error, df


def combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The standard error and Satterthwaite's degrees of freedom of a sum of independent estimates of variance."""
    variance = sum(part for part, _ in parts)
    if not variance > 0 or min(df for _, df in parts) <= 0:
        return (0.0 if variance == 0 else nan), 0.0
    return sqrt(variance), variance**2 / sum(part**2 / df for part, df in parts)


def fit(top1: pd.DataFrame, pool: Collection[str] | None = None) -> Additive:
    """The model of a table: rows are methods, columns are seeds, values top-1 in percent, NaN where not measured.

    pool: the rows that may share one residual, where the recipe declares them; all otherwise. Rows and columns without
    a value are left out. A table of one row has Student's interval. UsageError: no value at all, a row or seed twice,
    values outside [0, 100], a pool with unknown names or with fewer than two measured rows.
    """
    _refuse(top1, pool)
    whole = top1.to_numpy(dtype=float)
    measured = ~np.isnan(whole)
    rows, columns = measured.any(axis=1), measured.any(axis=0)
    values = whole[np.ix_(rows, columns)]
    methods = tuple(top1.index[rows])
    declared = [row for row, method in enumerate(methods) if pool is None or method in pool]
    if len(declared) < min(2, len(methods)):
        raise UsageError("a pool needs two rows that were measured; the declared one has fewer")
    kept, pooled, effects = _peers(values, declared)
    apart = {methods[row]: _own(values[row] - effects.seed) for row in range(len(methods)) if row not in kept}
    return Additive(
        methods=methods,
        seeds=tuple(top1.columns[columns]),
        values=values,
        pooled=pooled if len(methods) > 1 else _own(values[0]),
        apart=apart,
        seed_sd=effects.seed_sd(pooled),
        influence=(_least_squares(values) if apart else effects).influence,
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


# ------------------------------------------------------------------------------------------ least squares


class _Fit(NamedTuple):
    influence: np.ndarray  # [M + S, N]
    scale: np.ndarray  # [M + S, M + S], the effects' covariance over the residual variance
    seed: np.ndarray  # [S] effects of the seeds, mean 0; NaN for a seed without a cell
    squares: np.ndarray  # [M] residual sums of squares
    df: np.ndarray  # [M] what is left of every row's cells after the fit; their sum is the residual's

    def scatter(self, rows: np.ndarray | None = None) -> Scatter:
        """The residual of some rows, of all where none are given."""
        df = float(self.df.sum() if rows is None else self.df[rows].sum())
        squares = float(self.squares.sum() if rows is None else self.squares[rows].sum())
        return Scatter(sqrt(squares / df), df) if df > ESTIMABLE else Scatter(nan, 0.0)

    def seed_sd(self, residual: Scatter) -> float:
        """Of the seeds' effects, without what the residual adds to their estimates."""
        known = ~np.isnan(self.seed)
        if known.sum() < 2 or residual.df < 1:
            return nan
        noise = self.scale[len(self.df) :, len(self.df) :][np.ix_(known, known)]
        noise = noise - noise.mean(axis=0)
        excess = self.seed[known].var(ddof=1) - residual.sd**2 * np.trace(noise) / (known.sum() - 1)
        return sqrt(max(0.0, excess))


def _least_squares(values: np.ndarray) -> _Fit:
    """outcome ~ method + seed on the cells of [M, S] that are not NaN."""
    methods, seeds = values.shape
    rows, columns = np.nonzero(~np.isnan(values))
    design = np.zeros((len(rows), methods + seeds))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), methods + columns] = 1
    scale = np.linalg.pinv(design.T @ design, hermitian=True)
    influence = scale @ design.T
    effects = influence @ values[rows, columns]
    residuals = values[rows, columns] - design @ effects
    residuals[np.abs(residuals) < 1e-9] = 0  # rounding; top-1 moves in steps of 100 over the images
    seed = np.where(np.bincount(columns, minlength=seeds) > 0, effects[methods:], np.nan)
    leverage = np.einsum("np,pn->n", design, influence)
    return _Fit(
        influence,
        scale,
        seed - np.nanmean(seed),
        squares=np.bincount(rows, residuals**2, methods),
        df=np.bincount(rows, 1 - leverage, methods),
    )


def _peers(values: np.ndarray, rows: list[int]) -> tuple[list[int], Scatter, _Fit]:
    """The rows whose scatter is no outlier, their residual and their fit; at least three rows stay, of fewer all."""
    while True:
        fitted = _least_squares(values[rows])
        outlier = _outlier(fitted) if len(rows) > 3 else None
        if outlier is None:
            return rows, fitted.scatter(), fitted
        rows = [row for number, row in enumerate(rows) if number != outlier]


def _outlier(fitted: _Fit) -> int | None:
    """The row of the largest mean square, if Cochran's test finds it too large for the mean square of the others."""
    from scipy.special import fdtrc

    tested = fitted.df > ESTIMABLE
    means = np.where(tested, fitted.squares / np.where(tested, fitted.df, 1), 0)
    row = int(means.argmax())
    others = fitted.scatter(np.arange(len(means)) != row)
    if not others.sd > 0:
        return None
    p = tested.sum() * fdtrc(fitted.df[row], others.df, means[row] / others.sd**2)
    return row if p < OUTLYING else None


def _own(values: np.ndarray) -> Scatter:
    """The scatter of one row that the seeds' effects have been taken from."""
    known = values[~np.isnan(values)]
    return Scatter(float(known.std(ddof=1)), len(known) - 1.0) if len(known) > 1 else Scatter(nan, 0.0)


# ------------------------------------------------------------------------------------------ Student's t


def _t_cdf(df: float, t: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(df, t))
