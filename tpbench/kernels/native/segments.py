"""Tokens averaged by cluster: the native twin of `kernels.segments`.

Shapes: B sets, N tokens, K clusters, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels.native.engine import Types, array, compiled, flat_array, over_sets


def segment_mean(x: Tensor, weight: Tensor, assignment: Tensor, k: int) -> Tensor:
    """x [B, N, C], weight and assignment [B, N] -> [B, k, C]; raises IndexError for a cluster outside 0..k-1."""
    batch, n, width = x.shape
    mean = torch.empty(batch, k, width, dtype=x.dtype, device="cpu")
    numbers, set_stride, row_stride = flat_array(x)
    weights = array(weight, x.dtype)
    clusters = array(assignment, torch.int64)
    if not over_sets(mean_sets, 0, batch, n, numbers, set_stride, row_stride, weights, clusters, mean.numpy()):
        raise IndexError(f"a token belongs to none of the {k} clusters")
    return mean


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {mean_sets: (given.line, given.size, given.size, given.table, given.index, given.cube)}


@compiled
def _shares(weight, assignment, total, share):
    """What each token contributes to the mean of its cluster; the same for all where none weighs anything."""
    one = weight.dtype.type(1)
    total[:] = 0
    for i in range(len(weight)):
        total[assignment[i]] += weight[i]
    for i in range(len(weight)):
        share[i] = weight[i] if total[assignment[i]] > 0 else one
    total[:] = 0
    for i in range(len(weight)):
        total[assignment[i]] += share[i]
    for i in range(len(weight)):
        share[i] /= total[assignment[i]]


@compiled
def mean_sets(begin, end, base, x, set_stride, row_stride, weight, assignment, mean):  # noqa: ARG001
    """x holds the numbers of all sets. False where a token belongs to no cluster."""
    _, k, width = mean.shape
    n = weight.shape[1]
    total = np.empty(k, x.dtype)
    share = np.empty(n, x.dtype)
    for b in range(begin, end):
        if n > 0 and (assignment[b].min() < 0 or assignment[b].max() >= k):
            return False
        _shares(weight[b], assignment[b], total, share)
        mean[b] = 0
        for i in range(n):
            row = x[b * set_stride + i * row_stride :][:width]
            out = mean[b, assignment[b, i]]
            part = share[i]
            for c in range(width):
                out[c] += row[c] * part
    return True
