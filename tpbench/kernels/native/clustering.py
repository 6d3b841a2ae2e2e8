"""The operators `clustering.kmedoids` and `clustering.kmeans` in compiled loops, and the steps they are made of.

A few sets at a time go through all steps, in memory that is reused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels import clustering
from tpbench.kernels.native.distances import (
    distance_sets,
    distances_from,
    inner_products,
    products_in_parts,
    squared_distances,
)
from tpbench.kernels.native.engine import array, buffer, over_sets
from tpbench.kernels.native.iterations import iterate_means, iterate_medoids, means_sets, medoids_sets, run
from tpbench.kernels.native.starts import STARTS, farthest, heaviest, peaks, start_sets

__all__ = [
    "distances_from",
    "farthest",
    "heaviest",
    "inner_products",
    "iterate_means",
    "iterate_medoids",
    "kmeans",
    "kmedoids",
    "peaks",
    "squared_distances",
]


def kmedoids(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """All steps of the operator `clustering.kmedoids`."""
    batch, n, _ = x.shape
    first, weights, scores = _prepared(x, weight, score, first=first, start=start, k=k)
    medoids = _firsts(first, batch, k)
    assignment = torch.empty(batch, n, dtype=torch.int64, device="cpu")
    found = medoids.numpy()
    own = assignment.numpy()
    for begin, end, pairs in products_in_parts(x):
        over_sets(distance_sets, begin, end, n, pairs, pairs)
        if first is None:
            over_sets(start_sets, begin, end, n, STARTS[start], pairs, scores, found)
        run(medoids_sets, begin, end, n, pairs, weights, iterations, found, own)
    return medoids, assignment


def kmeans(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """All steps of the operator `clustering.kmeans`."""
    batch, n, _ = x.shape
    exact = _exact(x)
    first, weights, scores = _prepared(x, weight, score, first=first, start=start, k=k)
    chosen = _firsts(first, batch, k).numpy()
    share = torch.empty(batch, k, n, dtype=exact, device="cpu")
    assignment = torch.empty(batch, n, dtype=torch.int64, device="cpu")
    shares = share.numpy()
    own = assignment.numpy()
    for begin, end, pairs in products_in_parts(x):
        if first is None:
            distance = pairs
            if start != "topk":
                distance = buffer("distances", pairs.shape, exact).array
                over_sets(distance_sets, begin, end, n, pairs, distance)
            over_sets(start_sets, begin, end, n, STARTS[start], distance, scores, chosen)
        run(means_sets, begin, end, n, pairs, weights, iterations, chosen, shares, own)
    return share, assignment


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _prepared(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int
) -> tuple[Tensor | None, np.ndarray, np.ndarray]:
    """The tokens to start from (None: to be chosen), and weights and scores [B, N] in the dtype of the distances.

    The start "topk" is chosen here where that dtype would lose the order of the scores.
    """
    exact = _exact(x)
    if first is None and start == "topk" and torch.promote_types(score.dtype, exact) != exact:
        first = clustering.heaviest(score, k)
    weights = array(weight, exact)
    scores = weights if score is weight else array(score, exact)
    return first, weights, scores


def _firsts(first: Tensor | None, batch: int, k: int) -> Tensor:
    """An empty [B, K] for the tokens to start from, or a copy of those given."""
    chosen = torch.empty(batch, k, dtype=torch.int64, device="cpu")
    return chosen if first is None else chosen.copy_(first)
