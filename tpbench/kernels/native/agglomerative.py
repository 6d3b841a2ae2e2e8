"""Agglomerative clustering: the native twin of `kernels.agglomerative`, with the same merges, set by set.

Every cluster keeps its nearest among those of higher index, and searches again only when that one has merged
(Müllner, 2011, the "generic" algorithm): N^2 for the start, and on average a few times N for each merge, where the
definition reads all N^2 distances.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels.agglomerative import FARTHEST
from tpbench.kernels.native.engine import Types, array, compiled, over_sets

LINKAGES = {"single": 0, "average": 1, "complete": 2}
FAR = np.float64(FARTHEST)


def agglomerate(distance: Tensor, k: int, linkage: str) -> Tensor:
    """distance [B, N, N] float32 or float64 -> assignment [B, N], as `agglomerative.agglomerate`."""
    batch, n, _ = distance.shape
    assignment = torch.empty(batch, n, dtype=torch.int64, device="cpu")
    pairs = array(distance, distance.dtype)
    over_sets(agglomerate_sets, 0, batch, n, LINKAGES[linkage], pairs, k, assignment.numpy())
    return assignment


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {agglomerate_sets: (given.size, given.cube, given.size, given.index)}


@compiled
def _load(distance, between):
    """between [N, N] float64: both halves from the upper one, the diagonal infinite."""
    n = len(distance)
    for i in range(n):
        between[i, i] = np.inf
        for j in range(i + 1, n):
            apart = np.float64(distance[i, j])
            apart = apart if apart < FAR else FAR
            between[i, j] = apart
            between[j, i] = apart


@compiled
def _look(row, i, nearest, apart):
    """The nearest cluster of higher index, the lowest of equally near ones."""
    least = np.inf
    found = i
    for j in range(i + 1, len(row)):
        if row[j] < least:
            least = row[j]
            found = j
    nearest[i] = found
    apart[i] = least


@compiled
def _link(linkage, first, second, size, other):
    """first becomes the distances of the union from all others."""
    if linkage == 0:
        for m in range(len(first)):
            first[m] = min(first[m], second[m])
    elif linkage == 2:
        for m in range(len(first)):
            first[m] = max(first[m], second[m])
    else:
        for m in range(len(first)):
            first[m] = (size * first[m] + other * second[m]) / (size + other)


@compiled
def _merge(between, linkage, i, j, size, nearest, apart):
    """Cluster j becomes part of cluster i < j."""
    n = len(between)
    row = between[i]
    _link(linkage, row, between[j], size[i], size[j])
    row[i] = np.inf
    row[j] = np.inf
    size[i] += size[j]
    apart[j] = np.inf
    for m in range(n):
        between[m, i] = row[m]
        between[m, j] = np.inf
    for m in range(j):
        if apart[m] == np.inf or m == i:  # merged into another before
            continue
        gone = nearest[m] == j or (m < i and nearest[m] == i)
        if m < i and (row[m] < apart[m] or (row[m] == apart[m] and i <= nearest[m])):
            nearest[m] = i
            apart[m] = row[m]
        elif gone:
            _look(between[m], m, nearest, apart)
    _look(row, i, nearest, apart)


@compiled
def agglomerate_sets(begin, end, base, linkage, distance, k, assignment):  # noqa: ARG001
    """`agglomerate` for the sets from `begin` to `end`."""
    n = distance.shape[1]
    between = np.empty((n, n), np.float64)
    size = np.empty(n, np.float64)
    apart = np.empty(n, np.float64)
    nearest = np.empty(n, np.int64)
    parent = np.empty(n, np.int64)
    for b in range(begin, end):
        _load(distance[b], between)
        for i in range(n):
            size[i] = 1
            parent[i] = i
            _look(between[i], i, nearest, apart)
        for _ in range(n - k):
            i = np.argmin(apart)
            parent[nearest[i]] = i
            _merge(between, linkage, i, nearest[i], size, nearest, apart)
        _number(parent, assignment[b])
    return True


@compiled
def _number(parent, label):
    """Clusters numbered in the order of their lowest members: a token's parent has a lower index, or is itself."""
    count = 0
    for i in range(len(parent)):
        if parent[i] == i:
            label[i] = count
            count += 1
        else:
            label[i] = label[parent[i]]
