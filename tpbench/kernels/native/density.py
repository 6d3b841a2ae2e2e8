"""Clusters around density peaks (DPC-KNN): the native twin of `kernels.density`.

Shapes: B sets, N tokens, K clusters. A division by the width does not change which of two numbers is smaller, so only
the selected numbers are divided, not all pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels import density
from tpbench.kernels.native.distances import distance_sets, products_in_parts
from tpbench.kernels.native.engine import Types, array, compiled, over_sets
from tpbench.kernels.native.iterations import medoids_sets
from tpbench.tokens import stable_topk


def density_peaks(x: Tensor, neighbours: int, k: int) -> Tensor:
    """x [B, N, C] -> the cluster of every token: [B, N]."""
    batch, n, width = x.shape
    exact = torch.promote_types(x.dtype, torch.float32)
    assignment = torch.empty(batch, n, dtype=torch.int64, device="cpu")
    log_density, separation = torch.empty(2, batch, n, dtype=exact, device="cpu").unbind(0)
    densities = log_density.numpy()
    separations = separation.numpy()
    neighbours = min(neighbours, n)
    for begin, end, pairs in products_in_parts(x):
        over_sets(distance_sets, begin, end, n, pairs, pairs)
        over_sets(density_sets, begin, end, n, pairs, width, neighbours, densities, separations)
        # The logarithm is PyTorch's, so that it equals the definition's to the last bit.
        gain = density.log_product(log_density[begin:end], separation[begin:end])
        centres = stable_topk(gain, k).contiguous().numpy()
        own = assignment[begin:end].numpy()
        over_sets(_nearest, 0, end - begin, n, pairs, separations, centres, own)  # any [B, N] serves as the weights
    return assignment


def _nearest(begin: int, end: int, base: int, pairs: np.ndarray, weight: np.ndarray, *chosen: np.ndarray) -> bool:
    """K-Medoids without an iteration: every token goes to its nearest centre, and every centre to itself.

    Without an iteration only the shape [B, N] of weight is read.
    """
    return medoids_sets(begin, end, base, pairs, weight, 0, *chosen)


def density_and_separation(squared: Tensor, width: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Squared distances [B, N, N] of tokens C wide -> logarithm of the density [B, N], squared separation [B, N]."""
    batch, n, _ = squared.shape
    found = squared.new_empty(2, batch, n)
    pairs = array(squared, squared.dtype)
    over_sets(density_sets, 0, batch, n, pairs, width, min(neighbours, n), found[0].numpy(), found[1].numpy())
    return found[0], found[1]


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {density_sets: (given.cube, given.size, given.size, given.table, given.table)}


@compiled
def _smallest(row, near):
    """The smallest numbers of a row, in rising order; NaN counts as largest."""
    count = 0
    for value in row:
        if count == len(near):
            last = near[count - 1]
            if not ((value < last) | ((last != last) & (value == value))):
                continue
            count -= 1
        place = count
        while place > 0 and (value < near[place - 1] or (near[place - 1] != near[place - 1] and value == value)):
            near[place] = near[place - 1]
            place -= 1
        near[place] = value
        count += 1


@compiled
def _log_densities(squared, width, near, log_density):
    for i in range(len(squared)):
        _smallest(squared[i], near)
        total = near[0] / width
        for place in range(1, len(near)):
            total += near[place] / width
        log_density[i] = -(total / near.dtype.type(len(near)))


@compiled
def _largest(squared):
    """The largest of all, or NaN where there is one."""
    most = squared[0, 0]
    for i in range(len(squared)):
        for value in squared[i]:
            if value > most or value != value:
                most = value
            if most != most:
                return most
    return most


@compiled
def _separations(squared, density, separation):
    """Squared distances to the nearest denser token, all of them at once for one possible neighbour after another."""
    n = len(squared)
    separation[:] = _largest(squared)
    for j in range(n):
        row = squared[j]
        other = density[j]
        for i in range(n):
            least = separation[i]
            here = row[i]
            denser = (other > density[i]) | ((other == density[i]) & (j < i))
            nearer = denser & ((here < least) | (here != here))
            separation[i] = here if nearer else least


@compiled
def density_sets(begin, end, base, pairs, width, neighbours, log_density, separation):
    """pairs: squared distances of the sets from base on."""
    near = np.empty(neighbours, pairs.dtype)
    channels = np.full(1, width, pairs.dtype)[0]
    for b in range(begin, end):
        squared = pairs[b - base]
        _log_densities(squared, channels, near, log_density[b])
        _separations(squared, log_density[b], separation[b])
        for i in range(len(squared)):
            separation[b, i] /= channels
    return True
