"""Differences over seeds and images. Both are samples, and another draw of either would change the difference.

outcome difference, in points:   d[s, i] = difference + seed[s] + image[i] + residual[s, i]

    variance of the mean over S seeds = (scatter of the seeds' means)² / S + shared

The scatter contains everything that differs between seeds: the fine-tuning and, where the seed draws the test fold, the
images. It is estimated from these seeds alone on S - 1 degrees of freedom, or taken from the table's pooled residual on
many more. `shared` is the mean covariance of two seeds' means through the images that both tested, which the scatter
over seeds cannot contain. It is the image variance over I where all seeds test the same I images, and zero where no
image is tested twice. Both terms are moment estimates; Satterthwaite's formula gives the degrees of freedom of their
sum.

Why no bootstrap: over few seeds its variance is too small by the factor (S - 1) / S, and its quantiles are not those of
t. The interval is about further seeds and images with the same training images; overlap of training folds is not
corrected.

S seeds, I images
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan, sqrt
from typing import NamedTuple

import numpy as np

from tpbench.errors import UsageError
from tpbench.outcomes import Outcomes, paired, refuse_other_images
from tpbench.report.statistics import Difference, combined

AT_ONCE = 100_000  # answers that are looked at together: few enough for a processor's cache


@dataclass(frozen=True)
class Shared:
    """The covariance, in points², of two seeds' mean differences through the images that both tested.

    image_sd: points, the standard deviation of an image's own effect; NaN where no image was tested by two seeds.
    """

    covariance: float
    df: float
    image_sd: float


NOTHING_SHARED = Shared(0.0, 0.0, nan)


def from_outcomes(points: np.ndarray, a: str, b: str) -> Difference:
    """The difference of two rows from `outcomes.paired` alone, [S, I]: over seeds and images, S - 1 degrees or more.

    Seeds count alike, however many images each has tested. One seed has no interval.
    """
    means = _means(points)
    seeds = len(means)
    scatter = float(means.std(ddof=1)) if seeds > 1 else nan
    over_seeds = Difference(
        value=float(means.mean()), standard_error=scatter / sqrt(seeds), df=seeds - 1.0, seeds=seeds, a=a, b=b
    )
    return with_images(over_seeds, points)


def with_images(over_seeds: Difference, points: np.ndarray) -> Difference:
    """A difference over seeds, for instance of the pooled model, with the noise of the shared images added.

    points: [S, I] from `outcomes.paired` of the same two rows. Value and seeds stay those of the model.
    """
    if len(points) != over_seeds.seeds:
        raise UsageError(
            f"{over_seeds.a} minus {over_seeds.b}: outcomes of {len(points)} seeds, top-1 of {over_seeds.seeds}"
        )
    return _added(over_seeds, shared_images(points))


def _added(over_seeds: Difference, images: Shared) -> Difference:
    parts = [(over_seeds.standard_error**2, over_seeds.df)]
    if images.covariance > 0:
        parts.append((images.covariance, images.df))
    standard_error, df = combined(parts)
    return Difference(
        over_seeds.value, standard_error=standard_error, df=df, seeds=over_seeds.seeds, a=over_seeds.a, b=over_seeds.b
    )


def shared_images(points: np.ndarray) -> Shared:
    """The covariance of two seeds through their common images, from products of two seeds' deviations on one image.

    The expectation of such a product is the image variance, whatever varies within a seed. A negative estimate counts
    as zero. The uncertainty of the estimate comes from the spread of the products over the images.
    """
    tested = ~np.isnan(points)
    deviations = np.where(tested, points - _means(points)[:, None], 0.0)
    overlap = _overlap(tested)
    if not overlap.expected > 0:
        return NOTHING_SHARED
    return _shared((deviations.sum(axis=0) ** 2 - (deviations**2).sum(axis=0))[None], overlap)[0]


class _Overlap(NamedTuple):
    """expected: the expectation of the sum of products over the image variance; per_variance: the mean covariance."""

    expected: float
    per_variance: float


def _overlap(tested: np.ndarray) -> _Overlap:
    """How far the images of two seeds are the same: from [S, I], which images each seed was tested on."""
    seeds = len(tested)
    counts = tested.sum(axis=1).astype(float)  # [S]
    both = _off_diagonal(tested.astype(float) @ tested.T)  # [S, S] images that two seeds share
    expected = float((both * (1 - 1 / counts - 1 / counts[:, None] + both / np.outer(counts, counts))).sum())
    if not expected > 0:
        return _Overlap(0.0, 0.0)
    return _Overlap(expected, float((both / np.outer(counts, counts)).sum() / (seeds * (seeds - 1))))


def _shared(products: np.ndarray, overlap: _Overlap) -> list[Shared]:
    """Of P differences of rows that were tested alike, from [P, I] the products summed over ordered pairs of seeds."""
    expected, per_variance = overlap
    images = products.shape[1]
    sums = products.sum(axis=1)
    variances = np.maximum(sums / expected, 0.0)
    apart = products - (sums / images)[:, None]
    uncertainties = images * np.einsum("pi,pi->p", apart, apart) / (images - 1) / expected**2
    found = []
    for variance, uncertainty in zip(variances.tolist(), uncertainties.tolist()):
        df = 2 * variance**2 / uncertainty if uncertainty > 0 else 0.0
        found.append(Shared(variance * per_variance, df, sqrt(variance)))
    return found


# ------------------------------------------------------------------------------------------ many rows


@dataclass(frozen=True, eq=False)
class Answers:
    """The outcomes of one row over its seeds: deviations [S, I] of every answer in points from its seed's mean."""

    outcomes: Mapping[int, Outcomes]
    seeds: tuple[int, ...]
    tested: np.ndarray
    deviations: np.ndarray

    def alike(self, other: Answers) -> bool:
        """Whether two rows have the same seeds, each tested on the same images of one set."""
        return self._asked == other._asked

    @cached_property
    def overlap(self) -> _Overlap:
        """How far its seeds were tested on the same images."""
        return _overlap(self.tested)

    @cached_property
    def _asked(self) -> tuple[tuple[int, ...], set[str], bytes]:
        """Seeds, the set of images, and which of them each seed was tested on."""
        return self.seeds, {outcome.images for outcome in self.outcomes.values()}, self.tested.tobytes()


def answers(by_seed: Mapping[int, Outcomes]) -> Answers:
    """The outcomes of one row, by seed. UsageError where they are not all of one set of images."""
    seeds = tuple(sorted(by_seed))
    refuse_other_images(by_seed.values())
    tested = np.stack([by_seed[seed].tested for seed in seeds])
    right = 100.0 * np.stack([by_seed[seed].right for seed in seeds])
    means = right.sum(axis=1) / tested.sum(axis=1)
    return Answers(
        outcomes=by_seed, seeds=seeds, tested=tested, deviations=np.where(tested, right - means[:, None], 0.0)
    )


def with_all_images(over_seeds: Sequence[Difference], rows: Mapping[str, Answers]) -> list[Difference]:
    """`with_images` for many differences. Rows without answers, and rows without a common seed, keep theirs."""
    found = list(over_seeds)
    together: dict[str, list[int]] = {}
    for number, difference in enumerate(over_seeds):
        if difference.a not in rows or difference.b not in rows or not difference.seeds:
            continue
        a = rows[difference.a]
        b = rows[difference.b]
        if a.alike(b) and difference.seeds == len(a.seeds):
            together.setdefault(difference.a, []).append(number)
        else:
            found[number] = with_images(difference, paired(a.outcomes, b.outcomes))
    for name, numbers in together.items():
        others = [rows[over_seeds[number].b] for number in numbers]
        for number, images in zip(numbers, _all_shared(rows[name], others)):
            found[number] = _added(over_seeds[number], images)
    return found


def _all_shared(row: Answers, others: Sequence[Answers]) -> Iterator[Shared]:
    """What a row shares with each of others that were tested alike, so many at a time as fit into the cache."""
    if not row.overlap.expected > 0:
        yield from [NOTHING_SHARED] * len(others)
        return
    step = max(1, AT_ONCE // row.tested.size)
    for first in range(0, len(others), step):
        yield from _shared(_products(row, others[first : first + step]), row.overlap)


def _products(row: Answers, others: Sequence[Answers]) -> np.ndarray:
    """[P, I] the products of two seeds' differences, summed over ordered pairs of seeds: (sum of d)² - sum of d²."""
    differences = np.stack([other.deviations for other in others])  # [P, S, I], changed in place
    np.subtract(row.deviations, differences, out=differences)
    products = differences.sum(axis=1)
    products *= products
    differences *= differences
    products -= differences.sum(axis=1)
    return products


def _means(points: np.ndarray) -> np.ndarray:
    """[S] mean differences. A seed without images is refused."""
    if points.ndim != 2 or np.isnan(points).all(axis=1).any():
        raise UsageError("paired outcomes are one row a seed, and every seed has tested images")
    return np.nanmean(points, axis=1)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix * (1 - np.eye(len(matrix)))
