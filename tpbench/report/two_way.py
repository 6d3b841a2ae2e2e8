"""Differences over seeds and images. Both are samples: another draw of either would change the difference.

outcome difference, in points:   d[s, i] = difference + seed[s] + image[i] + residual[s, i]

    variance of the mean over S seeds = (scatter of the seeds' means)² / S + shared

The scatter contains everything that differs between seeds: the fine-tuning and, where the seed draws the test fold, the
images. It is estimated from these seeds alone on S - 1 degrees of freedom, or taken from the table's pooled residual on
many more. `shared` is the mean covariance of two seeds' means that comes from images that both seeds test; the scatter
over seeds cannot contain it. If all seeds test the same I images, it is the image variance divided by I; if no image is
tested twice, it is zero. Both terms are moment estimates; Satterthwaite's formula gives the degrees of freedom of their
sum.

Few seeds may agree by chance, and Satterthwaite's formula then trusts them. Therefore, beside `shared`, the scatter
counts as at least what the images alone give it: (variance of a seed's mean) - shared, which thousands of images
estimate well. And there is no interval where the seeds alone would have none (fewer than MIN_DF degrees of freedom),
because images cannot show how seeds scatter.

Why not a bootstrap: with few seeds its variance is too small by the factor (S - 1) / S, and its quantiles are not those
of Student's t. The interval is about new seeds and new test images with the same training images; it is not corrected
for the overlap of training folds.

Shapes: S seeds, I images, P pairs of rows, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan, sqrt
from typing import NamedTuple

import numpy as np

from tpbench.errors import UsageError
from tpbench.outcomes import Outcomes, paired, refuse_other_images
from tpbench.report.estimates import MIN_DF, Difference, Differences, combined, combined_pairs
from tpbench.report.least_squares import DECIMALS

AT_ONCE = 50_000  # numbers in one block of a product, so that it fits a processor's cache


@dataclass(frozen=True)
class Shared:
    """The covariance of two seeds' mean differences, in points², that comes from the images that both test.

    scatter: how much the seeds' means vary about each other because of the images alone, in points². image_sd: the
    standard deviation of the images' effects in points; NaN if no image is tested by two seeds.
    """

    covariance: float
    df: float
    scatter: float
    image_sd: float


NOTHING_SHARED = Shared(covariance=0.0, df=0.0, scatter=0.0, image_sd=nan)


def from_outcomes(points: np.ndarray, a: str, b: str) -> Difference:
    """The difference of two rows over seeds and images, from `outcomes.paired` alone: [S, I].

    All seeds have the same weight, however many images each tests. With one seed there is no interval.
    """
    means = _means(points)
    seeds = len(means)
    scatter = float(means.std(ddof=1)) if seeds > 1 else nan
    over_seeds = Difference(
        value=float(means.mean()), standard_error=scatter / sqrt(seeds), df=seeds - 1.0, seeds=seeds, a=a, b=b
    )
    return with_images(over_seeds, points)


def with_images(over_seeds: Difference, points: np.ndarray) -> Difference:
    """A difference over seeds, for instance of the pooled model, with the noise of the test images.

    points: [S, I] from `outcomes.paired` of the same two rows. Only the standard error and its df change.
    """
    shared = _shared_with(over_seeds, points)
    if over_seeds.df < MIN_DF or not shared.covariance > 0:
        return over_seeds
    of_seeds = max(over_seeds.standard_error**2, shared.scatter / over_seeds.seeds)
    standard_error, df = combined([(of_seeds, over_seeds.df), (shared.covariance, shared.df)])
    return replace(over_seeds, standard_error=standard_error, df=df)


def _shared_with(over_seeds: Difference, points: np.ndarray) -> Shared:
    if len(points) != over_seeds.seeds:
        raise UsageError(
            f"{over_seeds.a} minus {over_seeds.b}: outcomes of {len(points)} seeds, top-1 of {over_seeds.seeds}"
        )
    return shared_images(points)


def shared_images(points: np.ndarray) -> Shared:
    """The covariance of two seeds from their common images: points [S, I].

    The product of two seeds' deviations on one image has the image variance as its expectation, whatever else varies
    within a seed. A negative estimate counts as zero. The spread of the products over the images gives the uncertainty
    of the estimate.
    """
    tested = ~np.isnan(points)
    deviations = np.where(tested, points - _means(points)[:, None], 0.0)
    overlap = _overlap(tested)
    if not overlap.expected > 0:
        return NOTHING_SHARED
    products = deviations.sum(axis=0) ** 2 - (deviations**2).sum(axis=0)
    variance, df = _estimated(products.sum(), (products**2).sum(), images=points.shape[1], overlap=overlap)
    covariance = float(variance) * overlap.per_variance
    of_a_seed = float((deviations**2 * _weights(tested)[:, None]).sum())
    return Shared(covariance, float(df), scatter=max(0.0, of_a_seed - covariance), image_sd=sqrt(variance))


def _weights(tested: np.ndarray) -> np.ndarray:
    """[S] factors by which squared deviations add up to the mean variance of a seed's mean. tested: [S, I]."""
    counts = tested.sum(axis=1).astype(float)
    return 1 / (len(counts) * counts * np.maximum(counts - 1, 1))


class _Overlap(NamedTuple):
    """What the image variance contributes, per unit: to the expected sum of products, and to the mean covariance."""

    expected: float
    per_variance: float


def _overlap(tested: np.ndarray) -> _Overlap:
    """How much the test images of two seeds overlap. tested: [S, I] whether a seed tests an image."""
    seeds = len(tested)
    counts = tested.sum(axis=1).astype(float)  # [S]
    both = _off_diagonal(tested.astype(float) @ tested.T)  # [S, S] images that two seeds share
    expected = float((both * (1 - 1 / counts - 1 / counts[:, None] + both / np.outer(counts, counts))).sum())
    if not expected > 0:
        return _Overlap(0.0, 0.0)
    return _Overlap(expected, float((both / np.outer(counts, counts)).sum() / (seeds * (seeds - 1))))


def _estimated(sums: np.ndarray, squares: np.ndarray, images: int, overlap: _Overlap) -> tuple[np.ndarray, np.ndarray]:
    """The image variances in points² and their degrees of freedom, [P] each, from sums over I images.

    For each image, the products of two seeds' deviations are summed over ordered pairs of seeds; `sums` adds these
    numbers over the images and `squares` their squares. Rounding errors count as zero.
    """
    variances = np.maximum(np.round(sums / overlap.expected, DECIMALS), 0.0)
    apart = (squares - sums**2 / images) * images / (images - 1)
    uncertainties = np.round(apart / overlap.expected**2, DECIMALS)
    known = (variances > 0) & (uncertainties > 0)
    return np.where(known, variances, 0.0), 2 * variances**2 / np.where(known, uncertainties, np.inf)


# ------------------------------------------------------------------------------------------ many rows


@dataclass(frozen=True, eq=False)
class Answers:
    """The outcomes of one row over its seeds.

    tested: [S, I] whether a seed tests an image; deviations: [S, I] each answer minus its seed's mean, in points.
    """

    outcomes: Mapping[int, Outcomes]
    seeds: tuple[int, ...]
    tested: np.ndarray
    deviations: np.ndarray

    @cached_property
    def overlap(self) -> _Overlap:
        """How much the test images of two seeds overlap."""
        return _overlap(self.tested)

    @property
    def design(self) -> tuple[tuple[int, ...], frozenset[str], bytes]:
        """The seeds, the set of images, and which images each seed tests; rows of one design are computed at once."""
        return self.seeds, frozenset(outcome.images for outcome in self.outcomes.values()), self.tested.tobytes()


def answers(by_seed: Mapping[int, Outcomes]) -> Answers:
    """The outcomes of one row, by seed. Raises UsageError if they are not all of the same set of images."""
    seeds = tuple(sorted(by_seed))
    refuse_other_images(by_seed.values())
    tested = np.stack([by_seed[seed].tested for seed in seeds])
    right = 100.0 * np.stack([by_seed[seed].right for seed in seeds])
    means = right.sum(axis=1) / tested.sum(axis=1)
    return Answers(
        outcomes=by_seed, seeds=seeds, tested=tested, deviations=np.where(tested, right - means[:, None], 0.0)
    )


def with_all_images(over_seeds: Differences, rows: Mapping[str, Answers]) -> Differences:
    """`with_images` for many differences at once.

    Differences of rows without answers or without a common seed stay as they are.
    """
    groups: dict[tuple, int] = {}  # design -> number of the group
    group_of = {name: groups.setdefault(row.design, len(groups)) for name, row in rows.items()}
    together: dict[int, list[int]] = {}  # group -> differences within it
    covariance = np.zeros(len(over_seeds))
    df = np.ones(len(over_seeds))
    scatter = np.zeros(len(over_seeds))
    for number, (a, b, seeds) in enumerate(zip(over_seeds.a, over_seeds.b, over_seeds.seeds.tolist())):
        if a not in rows or b not in rows or not seeds:
            continue
        if group_of[a] == group_of[b] and seeds == len(rows[a].seeds):
            together.setdefault(group_of[a], []).append(number)
        else:
            shared = _shared_with(over_seeds[number], paired(rows[a].outcomes, rows[b].outcomes))
            covariance[number] = shared.covariance
            df[number] = shared.df
            scatter[number] = shared.scatter
    for numbers in together.values():
        pairs = [(over_seeds.a[number], over_seeds.b[number]) for number in numbers]
        covariance[numbers], df[numbers], scatter[numbers] = _shared_by_all(pairs, rows)
    noisier = (covariance > 0) & (over_seeds.df >= MIN_DF)
    standard_error = over_seeds.standard_error.copy()
    freedom = over_seeds.df.copy()
    standard_error[noisier], freedom[noisier] = combined_pairs(
        np.maximum(standard_error[noisier] ** 2, scatter[noisier] / over_seeds.seeds[noisier]),
        first_df=freedom[noisier],
        second=covariance[noisier],
        second_df=df[noisier],
    )
    return replace(over_seeds, standard_error=standard_error, df=freedom)


def _shared_by_all(
    pairs: Sequence[tuple[str, str]], rows: Mapping[str, Answers]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance, its degrees of freedom and the scatter of `Shared`, [P] each, for pairs of rows of one design."""
    first = rows[pairs[0][0]]
    if not first.overlap.expected > 0:
        return np.zeros(len(pairs)), np.ones(len(pairs)), np.zeros(len(pairs))
    left = {name: place for place, name in enumerate(dict.fromkeys(a for a, _ in pairs))}
    right = {name: place for place, name in enumerate(dict.fromkeys(b for _, b in pairs))}
    places = (np.array([left[a] for a, _ in pairs]), np.array([right[b] for _, b in pairs]))
    a = np.stack([rows[name].deviations for name in left])
    b = np.stack([rows[name].deviations for name in right])
    sums, squares = _moments(a, b)
    variances, df = _estimated(sums[places], squares[places], images=first.tested.shape[1], overlap=first.overlap)
    covariance = variances * first.overlap.per_variance
    of_a_seed = _variances(a, b, _weights(first.tested))[places]
    return covariance, df, np.maximum(0.0, of_a_seed - covariance)


def _variances(left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[A, B] the mean variance of a seed's mean, in points², of each row of `left` minus each row of `right`.

    left: [A, S, I] deviations in points; right: [B, S, I]; weights: [S] from `_weights`.
    """
    scale = np.sqrt(weights)[:, None]
    a = (left * scale).reshape(len(left), -1)
    b = (right * scale).reshape(len(right), -1)
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)


def _moments(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums over images of p and of p², [A, B] each, for every row of `left` minus every row of `right`.

    p is the product of two seeds' differences d on one image, summed over ordered pairs of seeds: (sum of d)² minus the
    sum of d². In an orthonormal basis of the seeds that begins with their mean, p = sum over k of weight[k] d[k]². With
    d = a - b this is own(a) + own(b) - 2 cross, where own(a) = sum of weight[k] a[k]² and cross = sum of
    weight[k] a[k] b[k]. The sums of p and p² are therefore matrix products over the images.

    left: [A, S, I] deviations in points; right: [B, S, I].
    """
    seeds = left.shape[1]
    basis = np.linalg.qr(np.column_stack([np.ones(seeds), np.eye(seeds)[:, 1:]]))[0].T
    weights = np.full(seeds, -1.0)
    weights[0] += seeds
    common = left.mean(axis=0)  # cancels in every difference; subtracting it reduces rounding errors
    sums = np.zeros((len(left), len(right)))
    squares = np.zeros_like(sums)
    step = max(1, AT_ONCE // ((len(left) + len(right)) * seeds**2))
    for first in range(0, left.shape[2], step):
        block = slice(first, first + step)
        a = _Side.of(basis @ (left[..., block] - common[:, block]), weights)
        b = _Side.of(basis @ (right[..., block] - common[:, block]), weights)
        sums += a.own.sum(axis=1)[:, None] + b.own.sum(axis=1) - 2 * a.weighted @ b.plain.T
        squares += (a.own**2).sum(axis=1)[:, None] + (b.own**2).sum(axis=1) + 2 * a.own @ b.own.T
        squares -= 4 * (a.weighted_by_own @ b.plain.T + a.plain @ b.weighted_by_own.T)
        squares += 4 * a.weighted_pairs @ b.pairs.T
    return sums, squares


class _Side(NamedTuple):
    """The factors of `_moments` for one side and i images.

    own: [R, i]; plain, weighted, weighted_by_own: [R, S i]; pairs, weighted_pairs: [R, S (S + 1) / 2 i].
    """

    own: np.ndarray
    plain: np.ndarray
    weighted: np.ndarray
    weighted_by_own: np.ndarray
    pairs: np.ndarray
    weighted_pairs: np.ndarray

    @staticmethod
    def of(rows: np.ndarray, weights: np.ndarray) -> _Side:
        """The factors from deviations in the basis of the weights: [R, S, i]."""
        weighted = weights[:, None] * rows
        own = (weighted * rows).sum(axis=1)
        first, second = np.triu_indices(len(weights))
        pairs = rows[:, first] * rows[:, second]
        twice = np.where(first == second, 1.0, 2.0) * weights[first] * weights[second]
        flat = (len(rows), -1)
        return _Side(
            own=own,
            plain=rows.reshape(flat),
            weighted=weighted.reshape(flat),
            weighted_by_own=(own[:, None] * weighted).reshape(flat),
            pairs=pairs.reshape(flat),
            weighted_pairs=(twice[:, None] * pairs).reshape(flat),
        )


def _means(points: np.ndarray) -> np.ndarray:
    """[S] the mean over images of each seed. Raises UsageError if a seed has no images."""
    if points.ndim != 2 or np.isnan(points).all(axis=1).any():
        raise UsageError("paired outcomes need one row per seed, and tested images in every row")
    return np.nanmean(points, axis=1)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix * (1 - np.eye(len(matrix)))
