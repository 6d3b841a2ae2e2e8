"""Where clustering starts: the native twin of the starts in `kernels.clustering`.

Shapes: B sets, N tokens, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels import clustering
from tpbench.kernels.native.engine import Types, array, compiled, over_sets

TOPK = 1
PEAKS = 2
FARTHEST = 3
STARTS = {"topk": TOPK, "peaks": PEAKS, "farthest": FARTHEST}


def heaviest(score: Tensor, k: int) -> Tensor:
    """Indices [B, K] of the k largest of score [B, N], largest first; ties to the lower index, NaN is largest."""
    if score.dtype not in (torch.float32, torch.float64):
        return clustering.heaviest(score, k)
    return _started("topk", score.new_empty(len(score), 1, 1), score, k)


def peaks(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """distance [B, N, N], score [B, N] -> the k tokens that stand out among the heavier ones: [B, K]."""
    return _started("peaks", distance, score, k)


def farthest(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """distance [B, N, N], score [B, N] -> weighted farthest-first traversal: [B, K]."""
    return _started("farthest", distance, score, k)


def _started(start: str, distance: Tensor, score: Tensor, k: int) -> Tensor:
    batch, n = score.shape
    first = torch.empty(batch, k, dtype=torch.int64)
    distances = array(distance, score.dtype)
    scores = array(score, score.dtype)
    over_sets(start_sets, 0, batch, n, STARTS[start], distances, scores, first.numpy())
    return first


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {start_sets: (given.size, given.cube, given.table, given.index)}


@compiled
def _ranks(score, rank):
    """How many tokens are heavier than each: larger, or as large with a lower index; NaN is larger than numbers."""
    n = len(score)
    missing = 0
    rank[:] = 0
    for j in range(n):
        value = score[j]
        missing += value != value
        before = rank[:j]
        behind = rank[j + 1 :]
        for i in range(j):
            before[i] += np.int32(value > score[i])
        later = score[j + 1 :]
        for i in range(n - j - 1):
            behind[i] += np.int32(value >= later[i])
    if missing > 0:
        _ranks_with_nan(score, rank)


@compiled
def _ranks_with_nan(score, rank):
    rank[:] = 0
    for i in range(len(score)):
        own = score[i]
        for j in range(len(score)):
            other = score[j]
            if own != own:
                rank[i] += np.int32((other != other) & (j < i))
            else:
                rank[i] += np.int32((other != other) | (other > own) | ((other == own) & (j < i)))


@compiled
def _first_of(rank, first):
    for i in range(len(rank)):
        if rank[i] < len(first):
            first[rank[i]] = i


@compiled
def _peaks(distance, score, rank, apart, first):
    n = len(score)
    far = score.dtype.type(np.inf)
    _ranks(score, rank)
    for i in range(n):  # the definition's distance where no other token is heavier
        apart[i] = distance[i, i] + score.dtype.type(np.finfo(score.dtype).max)
    for j in range(n):
        row = distance[j]
        place = rank[j]
        for i in range(n):
            least = apart[i]
            here = row[i]
            seen = here if (place < rank[i]) | (here != here) else far
            apart[i] = seen if (seen < least) | (seen != seen) else least
    for i in range(n):
        apart[i] = far if rank[i] == 0 else score[i] * apart[i]
    _ranks(apart, rank)
    _first_of(rank, first)


@compiled
def _farthest(distance, score, rank, nearest, first):
    n = len(score)
    nothing = score.dtype.type(-np.inf)
    taken = np.zeros(n, np.bool_)
    _ranks(score, rank)
    _first_of(rank, first[:1])
    nearest[:] = distance[first[0]]
    taken[first[0]] = True
    for turn in range(1, len(first)):
        chosen = 0
        most = nothing
        for i in range(n):
            gain = nothing if taken[i] else score[i] * nearest[i]
            if gain > most or gain != gain:
                chosen = i
                most = gain
            if gain != gain:
                break
        first[turn] = chosen
        taken[chosen] = True
        row = distance[chosen]
        for i in range(n):
            least = nearest[i]
            here = row[i]
            nearest[i] = here if (here < least) | (here != here) else least


@compiled
def _start(start, distance, score, rank, scratch, first):
    if start == TOPK:
        _ranks(score, rank)
        _first_of(rank, first)
    elif start == PEAKS:
        _peaks(distance, score, rank, scratch, first)
    elif start == FARTHEST:
        _farthest(distance, score, rank, scratch, first)


@compiled
def start_sets(begin, end, base, start, distance, score, first):
    """The first medoids or centres of the sets from `begin` to `end`."""
    rank = np.empty(score.shape[1], np.int32)
    scratch = np.empty(score.shape[1], score.dtype)
    for b in range(begin, end):
        _start(start, distance[b - base], score[b], rank, scratch, first[b])
    return True
