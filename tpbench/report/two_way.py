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

from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np

from tpbench.errors import UsageError
from tpbench.report.statistics import Difference, combined


@dataclass(frozen=True)
class Shared:
    """The covariance, in points², of two seeds' mean differences through the images that both tested.

    image_sd: points, the standard deviation of an image's own effect; NaN where no image was tested by two seeds.
    """

    covariance: float
    df: float
    image_sd: float


def from_outcomes(points: np.ndarray, a: str, b: str) -> Difference:
    """The difference of two rows from `outcomes.paired` alone, [S, I]: over seeds and images, S - 1 degrees or more.

    Seeds count alike, however many images each has tested. One seed has no interval.
    """
    means = _means(points)
    seeds = len(means)
    scatter = float(means.std(ddof=1)) if seeds > 1 else nan
    over_seeds = Difference(float(means.mean()), scatter / sqrt(seeds), seeds - 1.0, seeds, a, b)
    return with_images(over_seeds, points)


def with_images(over_seeds: Difference, points: np.ndarray) -> Difference:
    """A difference over seeds, for instance of the pooled model, with the noise of the shared images added.

    points: [S, I] from `outcomes.paired` of the same two rows. Value and seeds stay those of the model.
    """
    if len(points) != over_seeds.seeds:
        raise UsageError(
            f"{over_seeds.a} minus {over_seeds.b}: outcomes of {len(points)} seeds, top-1 of {over_seeds.seeds}"
        )
    images = shared_images(points)
    parts = [(over_seeds.standard_error**2, over_seeds.df)]
    if images.covariance > 0:
        parts.append((images.covariance, images.df))
    standard_error, df = combined(parts)
    return replace(over_seeds, standard_error=standard_error, df=df)


def shared_images(points: np.ndarray) -> Shared:
    """The covariance of two seeds through their common images, from products of two seeds' deviations on one image.

    The expectation of such a product is the image variance, whatever varies within a seed. A negative estimate counts
    as zero. The uncertainty of the estimate comes from the spread of the products over the images.
    """
    tested = ~np.isnan(points)
    counts = tested.sum(axis=1).astype(float)  # [S]
    deviations = np.where(tested, points - _means(points)[:, None], 0.0)
    both = _off_diagonal(tested.astype(float) @ tested.T)  # [S, S] images that two seeds share
    expected = both * (1 - 1 / counts - 1 / counts[:, None] + both / np.outer(counts, counts))
    if not expected.sum() > 0:
        return Shared(0.0, 0.0, nan)
    products = deviations.sum(axis=0) ** 2 - (deviations**2).sum(axis=0)  # [I] over ordered pairs of seeds
    variance = max(0.0, float(products.sum() / expected.sum()))
    per_variance = float((both / np.outer(counts, counts)).sum() / (len(points) * (len(points) - 1)))
    uncertainty = len(products) * float(products.var(ddof=1)) / expected.sum() ** 2
    df = 2 * variance**2 / uncertainty if uncertainty > 0 else 0.0
    return Shared(variance * per_variance, df, sqrt(variance))


def _means(points: np.ndarray) -> np.ndarray:
    """[S] mean differences. A seed without images is refused."""
    if points.ndim != 2 or np.isnan(points).all(axis=1).any():
        raise UsageError("paired outcomes are one row a seed, and every seed has tested images")
    return np.nanmean(points, axis=1)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix * (1 - np.eye(len(matrix)))
