"""Least squares for outcome ~ method + seed, and which rows may share one residual.

The methods' effects are eliminated first, so that only an [S, S] matrix is inverted and the cost is linear in the
number of methods.

Shapes: M methods, S seeds, N measured cells, P pairs of methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import nan, sqrt
from typing import NamedTuple

import numpy as np

OUTLYING = 0.1  # level of Cochran's test, over the rows of one step
DECIMALS = 9  # of an estimate in points; later digits are rounding errors, since top-1 moves in steps of 100 / images
ESTIMABLE = 1e-8  # the largest error of a contrast that counts as estimable


class Scatter(NamedTuple):
    """The residual's standard deviation in points, and its degrees of freedom."""

    sd: float
    df: float


@dataclass(frozen=True, eq=False)
class Fit:
    """The fit of outcome ~ method + seed to the measured cells of an [M, S] table.

    rows, columns: [N] the row and the column of each cell; outcomes: [N] percent; counts: [M] measured cells of a row;
    shares: [M, S] 1 / counts where a row was measured, otherwise 0;
    influence: [S, N] the weight of each cell in the estimates of the seeds' effects;
    scale: [S, S] the covariance of the seeds' effects, divided by the residual variance;
    seed: [S] the seeds' effects, with mean 0; NaN for a seed without a cell;
    squares: [M] residual sums of squares; df: [M] residual degrees of freedom of each row.
    """

    rows: np.ndarray
    columns: np.ndarray
    outcomes: np.ndarray
    counts: np.ndarray
    shares: np.ndarray
    influence: np.ndarray
    scale: np.ndarray
    seed: np.ndarray
    squares: np.ndarray
    df: np.ndarray

    def contrast(self, of_rows: dict[int, float], of_seeds: np.ndarray) -> tuple[float, dict[int, float]] | None:
        """A contrast's estimate, and by row the sum of the squared weights of its cells; None if it is not estimable.

        of_rows: the nonzero coefficients of the methods' effects, by row; of_seeds: [S] the coefficients of the seeds.
        """
        left = of_seeds - sum(coefficient * self.shares[row] for row, coefficient in of_rows.items())
        if np.abs(left).max() < ESTIMABLE:  # the seeds' effects cancel, so a row's plain mean is its estimate
            value = float(sum(coefficient * self._means[row] for row, coefficient in of_rows.items()))
            return round(value, DECIMALS), {
                row: coefficient**2 / self.counts[row] for row, coefficient in of_rows.items()
            }
        weights = left @ self.influence
        for row, coefficient in of_rows.items():
            weights[self._cells(row)] += coefficient / self.counts[row]
        if not self._reproduces(weights, of_rows, of_seeds):
            return None
        squares = np.bincount(self.rows, weights**2, len(self.counts))
        value = round(float(weights @ self.outcomes), DECIMALS)
        return value, {int(row): squares[row] for row in np.nonzero(squares > ESTIMABLE**2)[0]}

    def plain_means(self) -> np.ndarray:
        """[M] the rows' plain means: the estimates of `contrast` for rows that were measured with every seed."""
        return np.round(self._means, DECIMALS)

    def same_seeds(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """[P] whether both rows of a pair were measured with the same seeds, whose effects then cancel."""
        return self._patterns[first] == self._patterns[second]

    def plain_differences(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """[P] differences of plain means: the estimates of `contrast` for pairs with the same seeds, in less time."""
        return np.round(self._means[first] - self._means[second], DECIMALS)

    def _reproduces(self, weights: np.ndarray, of_rows: dict[int, float], of_seeds: np.ndarray) -> bool:
        """Whether the weights of the cells add up to the contrast's coefficients, for each row and each seed."""
        by_row = np.bincount(self.rows, weights, len(self.counts))
        for row, coefficient in of_rows.items():
            by_row[row] -= coefficient
        by_seed = np.bincount(self.columns, weights, len(self.seed)) - of_seeds
        return max(np.abs(by_row).max(), np.abs(by_seed).max()) < ESTIMABLE

    def _cells(self, row: int) -> slice:
        first, last = np.searchsorted(self.rows, (row, row + 1))
        return slice(first, last)

    @cached_property
    def _means(self) -> np.ndarray:
        """[M] the rows' plain means."""
        return np.bincount(self.rows, self.outcomes) / self.counts

    @cached_property
    def _patterns(self) -> np.ndarray:
        """[M] a number for each row; rows that were measured with the same seeds have the same number."""
        return np.unique(self.shares > 0, axis=0, return_inverse=True)[1].reshape(-1)

    def scatter(self, rows: np.ndarray | None = None) -> Scatter:
        """The residual of the given rows, by default of all."""
        df = round(float(self.df.sum() if rows is None else self.df[rows].sum()), 9)
        squares = float(self.squares.sum() if rows is None else self.squares[rows].sum())
        return Scatter(sqrt(squares / df), df) if df > ESTIMABLE else Scatter(nan, 0.0)

    def seed_sd(self, residual: Scatter) -> float:
        """The standard deviation of the seeds' effects, corrected for the residual noise in their estimates."""
        known = ~np.isnan(self.seed)
        if known.sum() < 2 or residual.df < 1:
            return nan
        noise = self.scale[np.ix_(known, known)]
        noise = noise - noise.mean(axis=0)
        excess = self.seed[known].var(ddof=1) - residual.sd**2 * np.trace(noise) / (known.sum() - 1)
        return sqrt(max(0.0, excess))


def least_squares(values: np.ndarray) -> Fit:
    """Fit outcome ~ method + seed to the cells of [M, S] that are not NaN. Every row must have at least one."""
    measured = ~np.isnan(values)
    rows, columns = np.nonzero(measured)
    outcomes = values[rows, columns]
    counts = measured.sum(axis=1)
    shares = measured / counts[:, None]
    within = np.diag(measured.sum(axis=0)) - measured.T.astype(float) @ shares  # [S, S]
    scale = np.linalg.pinv(within, rcond=1e-10, hermitian=True)
    deviations = -shares[rows].T  # [S, N]: a cell's seed minus the mean of its row's seeds
    deviations[columns, np.arange(len(rows))] += 1
    influence = scale @ deviations
    seed = influence @ outcomes
    method = np.bincount(rows, outcomes) / counts - shares @ seed
    residuals = outcomes - method[rows] - seed[columns]
    residuals[np.abs(residuals) < 1e-9] = 0  # rounding errors, see DECIMALS
    leverage = 1 / counts[rows] + np.einsum("sn,sn->n", deviations, influence)
    known = np.where(measured.any(axis=0), seed, np.nan)
    return Fit(
        rows=rows,
        columns=columns,
        outcomes=outcomes,
        counts=counts,
        shares=shares,
        influence=influence,
        scale=scale,
        seed=known - np.nanmean(known),
        squares=np.bincount(rows, residuals**2),
        df=np.bincount(rows, 1 - leverage),
    )


def pooled_rows(values: np.ndarray, rows: list[int]) -> tuple[list[int], Scatter, Fit]:
    """The rows left after removing outlying scatters one by one, their residual and their fit.

    At least three rows are left; of three or fewer none is removed.
    """
    while True:
        fitted = least_squares(values[rows])
        outlier = _outlier(fitted) if len(rows) > 3 else None
        if outlier is None:
            return rows, fitted.scatter(), fitted
        rows = [row for number, row in enumerate(rows) if number != outlier]


def _outlier(fitted: Fit) -> int | None:
    """The row with the largest mean square if Cochran's test rejects it against the mean square of the others."""
    from scipy.special import fdtrc

    tested = fitted.df > ESTIMABLE
    means = np.where(tested, fitted.squares / np.where(tested, fitted.df, 1), 0)
    row = int(means.argmax())
    others = fitted.scatter(np.arange(len(means)) != row)
    if not others.sd > 0:
        return None
    p = tested.sum() * fdtrc(fitted.df[row], others.df, means[row] / others.sd**2)
    return row if p < OUTLYING else None


def own_scatter(values: np.ndarray) -> Scatter:
    """The scatter of one row, [S], after the seeds' effects were subtracted."""
    known = values[~np.isnan(values)]
    return Scatter(float(known.std(ddof=1)), len(known) - 1.0) if len(known) > 1 else Scatter(nan, 0.0)
