"""The native twins of `tpbench.kernels.clustering` for CPUs, compiled by numba: same names, signatures and answers.

Shapes: B sets, N tokens, K clusters, C width. Matrix products stay with PyTorch. Everything around them is one
compiled loop over sets instead of dozens of small operators, and does the same arithmetic in the same order as the
definition: from the same tokens, the results are equal to the last bit, for NaN and infinity too. Costs are summed
within clusters only, over members that a counting sort puts side by side.

Compiled code is cached on disk by numba. `prepare` compiles or loads it: seconds the first time, a fraction of one
later. The first clustering of a process pays for that, so whoever measures warms up first.

Sets are shared among as many threads as PyTorch computes on. They are plain Python threads that numba's code runs on
without the interpreter's lock: numba starts no threads of its own, and a process that computes on one thread, such as
the benchmark's workers, starts none at all. A forked process starts its own when it needs them.

bfloat16 tokens, on a machine that multiplies bfloat16 matrices natively, are rounded to bfloat16 after the mean is
taken off; their products are summed in float32. Their distances then carry the rounding of 8 bits, as on a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from tpbench.kernels import clustering

SET_NUMBERS = 2**17  # tokens and distances, in numbers, that go through all steps together on one thread
THREAD_PAIRS = 2**16  # distances that are worth another thread
TILE = 16  # rows and columns of distances that are mirrored at a time
NEAR_POWER = 0.500005  # a mantissa this close above 0.5 may round to it in a logarithm

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


# ---------------------------------------------------------------- compiling


def prepare(exact: torch.dtype) -> None:
    """Compile every kernel for float32 or float64, or load it from numba's cache.

    Raises RuntimeError or OSError where the cache cannot be written, and RuntimeError where numba is switched off.
    """
    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is switched off by NUMBA_DISABLE_JIT")
    real = types.float64 if exact == torch.float64 else types.float32
    line, table, cube = (types.Array(real, dimensions, "C") for dimensions in (1, 2, 3))
    index, size = types.Array(types.int64, 2, "C"), types.int64
    kernels = {
        _centre_sets: (line, size, size, table, cube),
        _distance_sets: (cube, cube),
        _heaviest_sets: (table, index),
        _peaks_sets: (cube, table, index),
        _farthest_sets: (cube, table, index),
        _medoids_sets: (cube, table, index, size, index, index),
        _means_sets: (cube, table, index, size, cube, index),
    }
    for kernel, arguments in kernels.items():
        kernel.compile((size, size, *arguments))


# ---------------------------------------------------------------- sets on several threads


def sets_at_a_time(n: int, width: int) -> int:
    """How many sets go through all steps together: as many as stay in a core's cache, for every thread."""
    return max(1, SET_NUMBERS // (n * (n + width))) * torch.get_num_threads()


def _over_sets(kernel: Callable[..., bool | None], batch: int, n: int, *arguments: object) -> bool:
    """kernel(begin, end, *arguments) over all sets; whether no part of them returned False."""
    threads = min(torch.get_num_threads(), batch, batch * n * n // THREAD_PAIRS)
    if threads <= 1:
        return kernel(0, batch, *arguments) is not False
    cuts = [batch * part // threads for part in range(threads + 1)]
    pool = _threads(os.getpid(), threads - 1)
    others = [pool.submit(kernel, begin, end, *arguments) for begin, end in zip(cuts[1:], cuts[2:])]
    done = [kernel(0, cuts[1], *arguments)]
    done += [other.result() for other in others]
    return all(answer is not False for answer in done)


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """The threads of one process; a forked one has another number, and so other threads."""
    return ThreadPoolExecutor(count, thread_name_prefix="tpbench-clustering")


# ---------------------------------------------------------------- distances


def inner_products(x: Tensor) -> Tensor:
    """Inner products of the tokens about their mean: [B, N, N] float32 (float64 for float64)."""
    centred = _centred(x.detach().to(torch.promote_types(x.dtype, torch.float32)))
    if x.dtype != torch.bfloat16 or not multiplies_bfloat16():
        return torch.bmm(centred, centred.transpose(1, 2))
    rounded = centred.bfloat16().float()
    with _bfloat16_products():
        return torch.bmm(rounded, rounded.transpose(1, 2))


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32 (float64 for float64), symmetric to the last bit, 0 on the diagonal."""
    products = inner_products(x)
    return _distances(products, products)


def distances_from(products: Tensor) -> Tensor:
    """Squared distances [B, N, N] from inner products [B, N, N] about any point."""
    return _distances(products.contiguous(), torch.empty_like(products, memory_format=torch.contiguous_format))


def _distances(products: Tensor, room: Tensor) -> Tensor:
    batch, n, _ = products.shape
    _over_sets(_distance_sets, batch, n, products.numpy(), room.numpy())
    return room


def _centred(x: Tensor) -> Tensor:
    """x [B, N, C] less the rounded mean of each set: contiguous."""
    batch, n, width = x.shape
    if batch == 0:
        return x
    x = x if x.stride(2) == 1 else x.contiguous()
    span = (batch - 1) * x.stride(0) + (n - 1) * x.stride(1) + width
    numbers = x.as_strided((span,), (1,)).numpy()
    mean = x.mean(1)  # PyTorch's own: the order of its sums is its secret
    centred = x.new_empty(batch, n, width)
    sure = _over_sets(
        _centre_sets, batch, n, numbers, x.stride(0), x.stride(1), mean.contiguous().numpy(), centred.numpy()
    )
    return centred if sure else x - clustering.offset(x)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16 matrix products."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Within it float32 matrices that hold bfloat16 numbers are multiplied as such, and summed in float32."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@_compiled
def _centre_sets(begin, end, x, set_stride, row_stride, mean, centred):
    """x holds the numbers of all sets. False where a mean is not finite or its rounding is not certain."""
    _, n, width = centred.shape
    for b in range(begin, end):
        largest = np.zeros(width, x.dtype)
        for i in range(n):
            row = x[b * set_stride + i * row_stride :][:width]
            for c in range(width):
                size = abs(row[c])
                largest[c] = size if size > largest[c] else largest[c]
        mantissa, power = math.frexp(max(largest.max(), np.float32(1.1754943508222875e-38)))
        if mantissa == 0.5:
            power -= 1
        elif mantissa < NEAR_POWER:
            return False
        step = x.dtype.type(math.ldexp(1.0, power - 7))
        offset = np.empty(width, x.dtype)
        for c in range(width):
            if not math.isfinite(mean[b, c]):
                return False
            offset[c] = np.rint(mean[b, c] / step) * step
        for i in range(n):
            row = x[b * set_stride + i * row_stride :][:width]
            for c in range(width):
                centred[b, i, c] = row[c] - offset[c]
    return True


@_compiled
def _distance_sets(begin, end, products, distance):
    """distance may be products: every pair of numbers is read before it is written."""
    n = products.shape[1]
    norm = np.empty(n, products.dtype)
    zero = products.dtype.type(0)
    for b in range(begin, end):
        for i in range(n):
            norm[i] = products[b, i, i]
        for top in range(0, n, TILE):
            for left in range(top, n, TILE):
                for i in range(top, min(top + TILE, n)):
                    for j in range(max(left, i), min(left + TILE, n)):
                        apart = (norm[i] - products[b, i, j]) + (norm[j] - products[b, j, i])
                        apart = zero if apart < 0 else apart
                        distance[b, i, j] = apart
                        distance[b, j, i] = apart


# ---------------------------------------------------------------- where to start


def heaviest(score: Tensor, k: int) -> Tensor:
    """Indices [B, K] of the k largest of score [B, N], largest first; ties to the lower index, NaN is largest."""
    if score.dtype not in (torch.float32, torch.float64):
        return clustering.heaviest(score, k)
    return _started(_heaviest_sets, (), score, k)


def peaks(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """distance [B, N, N], score [B, N] -> the k tokens that stand out among the heavier ones: [B, K]."""
    return _started(_peaks_sets, (distance,), score, k)


def farthest(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """distance [B, N, N], score [B, N] -> weighted farthest-first traversal: [B, K]."""
    return _started(_farthest_sets, (distance,), score, k)


def _started(kernel: Callable[..., None], pairs: tuple[Tensor, ...], score: Tensor, k: int) -> Tensor:
    batch, n = score.shape
    first = torch.empty(batch, k, dtype=torch.int64)
    _over_sets(kernel, batch, n, *map(_array, (*pairs, score)), first.numpy())
    return first


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


@_compiled
def _ranks(score, rank):
    """How many tokens are heavier than each: larger, or as large with a lower index; NaN is larger than numbers."""
    n = len(score)
    for i in range(n):
        own, above = score[i], 0
        if own != own:
            for j in range(i):
                above += score[j] != score[j]
        else:
            for j in range(i):
                above += not (score[j] < own)
            for j in range(i + 1, n):
                above += not (score[j] <= own)
        rank[i] = above


@_compiled
def _first_of(rank, first):
    for i in range(len(rank)):
        if rank[i] < len(first):
            first[rank[i]] = i


@_compiled
def _heaviest_sets(begin, end, score, first):
    rank = np.empty(score.shape[1], np.int32)
    for b in range(begin, end):
        _ranks(score[b], rank)
        _first_of(rank, first[b])


@_compiled
def _peaks_sets(begin, end, distance, score, first):
    n = score.shape[1]
    rank = np.empty(n, np.int32)
    apart = np.empty(n, score.dtype)
    huge = score.dtype.type(np.finfo(score.dtype).max)
    far = score.dtype.type(np.inf)
    for b in range(begin, end):
        _ranks(score[b], rank)
        for i in range(n):  # a token that no finite distance separates from a heavier one
            apart[i] = distance[b, i, i] + huge
        for j in range(n):
            row, place = distance[b, j], rank[j]
            for i in range(n):
                seen = row[i] if (place < rank[i]) | (row[i] != row[i]) else far
                apart[i] = seen if (seen < apart[i]) | (seen != seen) else apart[i]
        for i in range(n):
            apart[i] = far if rank[i] == 0 else score[b, i] * apart[i]
        _ranks(apart, rank)
        _first_of(rank, first[b])


@_compiled
def _farthest_sets(begin, end, distance, score, first):
    n = score.shape[1]
    rank = np.empty(n, np.int32)
    taken = np.empty(n, np.bool_)
    nearest = np.empty(n, score.dtype)
    for b in range(begin, end):
        _ranks(score[b], rank)
        _first_of(rank, first[b, :1])
        taken[:] = False
        nearest[:] = distance[b, first[b, 0]]
        taken[first[b, 0]] = True
        for turn in range(1, first.shape[1]):
            chosen, most = 0, score.dtype.type(-np.inf)
            for i in range(n):
                gain = score.dtype.type(-np.inf) if taken[i] else score[b, i] * nearest[i]
                if (gain > most) | (gain != gain):
                    chosen, most = i, gain
                if gain != gain:
                    break
            first[b, turn] = chosen
            taken[chosen] = True
            row = distance[b, chosen]
            for i in range(n):
                nearest[i] = row[i] if (row[i] < nearest[i]) | (row[i] != row[i]) else nearest[i]


# ---------------------------------------------------------------- K-Medoids


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    (batch, n), k = weight.shape, first.shape[1]
    medoids = first.new_empty(batch, k)
    assignment = first.new_empty(batch, n)
    arrays = _array(distance), _array(weight), _array(first)
    if not _over_sets(_medoids_sets, batch, n, *arrays, iterations, medoids.numpy(), assignment.numpy()):
        raise _outside(n)
    return medoids, assignment


def _outside(n: int) -> IndexError:
    return IndexError(f"a token to start from is not among the {n} tokens")


@_compiled
def _inside(first, n):
    for token in first:
        if token < 0 or token >= n:
            return False
    return True


@_compiled
def _nearest_medoid(distance, medoids, best, label):
    """The first nearest medoid of every token, NaN before all numbers; a medoid's own cluster is its own."""
    n = len(label)
    row = distance[medoids[0]]
    for i in range(n):
        best[i] = row[i]
        label[i] = 0
    for number in range(1, len(medoids)):
        row = distance[medoids[number]]
        for i in range(n):
            nearer = (row[i] < best[i]) | ((row[i] != row[i]) & (best[i] == best[i]))
            best[i] = row[i] if nearer else best[i]
            label[i] = number if nearer else label[i]
    for number in range(len(medoids)):
        label[medoids[number]] = number


@_compiled
def _gather_members(label, begins, members):
    """members [N]: the tokens of cluster c, in rising order, from begins[c] to begins[c + 1]."""
    begins[:] = 0
    for i in range(len(label)):
        begins[label[i] + 1] += 1
    for number in range(1, len(begins)):
        begins[number] += begins[number - 1]
    for i in range(len(label)):
        members[begins[label[i]]] = i
        begins[label[i]] += 1
    for number in range(len(begins) - 1, 0, -1):
        begins[number] = begins[number - 1]
    begins[0] = 0


@_compiled
def _cheapest(distance, weight, members, medoid):
    """The member that costs its cluster least, ties to the lowest; where a cost is NaN, the medoid as it was."""
    if len(members) == 1:
        cost = weight[members[0]] * distance[members[0], members[0]]
        return medoid if cost != cost else members[0]
    chosen, least = medoid, distance.dtype.type(0)
    for place in range(len(members)):
        row = distance[members[place]]
        cost = distance.dtype.type(0)
        for member in members:
            cost += weight[member] * row[member]
        if cost != cost:
            return medoid
        if place == 0 or cost < least:
            chosen, least = members[place], cost
    return chosen


@_compiled
def _medoids_sets(begin, end, distance, weight, first, iterations, medoids, assignment):
    """False where a token to start from does not exist."""
    n, k = weight.shape[1], first.shape[1]
    best = np.empty(n, distance.dtype)
    label = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    for b in range(begin, end):
        if not _inside(first[b], n):
            return False
        medoids[b] = first[b]
        _nearest_medoid(distance[b], medoids[b], best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            moved = False
            for number in range(k):
                mine = members[begins[number] : begins[number + 1]]
                if len(mine) > 0:
                    chosen = _cheapest(distance[b], weight[b], mine, medoids[b, number])
                    moved |= chosen != medoids[b, number]
                    medoids[b, number] = chosen
            if not moved:
                break
            _nearest_medoid(distance[b], medoids[b], best, label)
        assignment[b] = label
    return True


# ---------------------------------------------------------------- K-Means


def iterate_means(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    (batch, n), k = weight.shape, first.shape[1]
    share = products.new_empty(batch, k, n)
    assignment = first.new_empty(batch, n)
    arrays = _array(products), _array(weight), _array(first)
    if not _over_sets(_means_sets, batch, n, *arrays, iterations, share.numpy(), assignment.numpy()):
        raise _outside(n)
    return share, assignment


@_compiled
def _nearest_mean(norm, inner, best, label):
    """The first nearest centre of every token by |c|^2 - 2 c.x, NaN before all numbers."""
    for number in range(len(norm)):
        row, length = inner[number], norm[number]
        for i in range(len(label)):
            apart = length - (row[i] + row[i])
            nearer = (apart < best[i]) | ((apart != apart) & (best[i] == best[i])) | (number == 0)
            best[i] = apart if nearer else best[i]
            label[i] = number if nearer else label[i]


@_compiled
def _move_mean(products, weight, members, share, inner, norm):
    """One centre moves to the weighted mean of its members; without weight it stays. Returns its squared length."""
    total = weight.dtype.type(0)
    for member in members:
        total += weight[member]
    if not total > 0:
        return norm
    share[:] = 0
    inner[:] = 0
    for member in members:
        part = weight[member] / total
        share[member] = part
        row = products[member]
        for i in range(len(inner)):
            inner[i] += row[i] * part
    norm = weight.dtype.type(0)
    for member in members:
        norm += share[member] * inner[member]
    return norm


@_compiled
def _means_sets(begin, end, products, weight, first, iterations, share, assignment):
    """False where a token to start from does not exist."""
    n, k = weight.shape[1], first.shape[1]
    inner = np.empty((k, n), products.dtype)  # c_k . x_i
    norm = np.empty(k, products.dtype)  # |c_k|^2
    best = np.empty(n, products.dtype)
    label = np.empty(n, np.int32)
    before = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    for b in range(begin, end):
        if not _inside(first[b], n):
            return False
        share[b] = 0
        for number in range(k):
            token = first[b, number]
            share[b, number, token] = 1
            inner[number] = products[b, token]
            norm[number] = products[b, token, token]
        _nearest_mean(norm, inner, best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            for number in range(k):
                mine = members[begins[number] : begins[number + 1]]
                norm[number] = _move_mean(
                    products[b], weight[b], mine, share[b, number], inner[number], norm[number]
                )
            before[:] = label
            _nearest_mean(norm, inner, best, label)
            if np.array_equal(before, label):
                break
        assignment[b] = label
    return True
