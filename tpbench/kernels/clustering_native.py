"""The native twins of `tpbench.kernels.clustering` for CPUs, compiled by numba: same names, signatures and answers.

Shapes: B sets, N tokens, K clusters, C width. Matrix products stay with PyTorch. Everything around them is one
compiled loop over sets instead of dozens of small operators, and does the same arithmetic in the same order as the
definition: from the same tokens, the results are equal to the last bit, for NaN and infinity too, as long as twice an
inner product does not overflow. Distances are taken to be symmetric. Costs are summed within clusters only, over
members that a counting sort puts side by side.

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
from itertools import pairwise

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from tpbench.kernels import clustering

SET_NUMBERS = 2**20  # tokens and distances, in numbers, that go through all steps together on one thread
THREAD_PAIRS = 2**16  # distances that are worth another thread
TILE = 16  # rows and columns of distances that are mirrored at a time
NEAR_POWER = 0.500005  # a mantissa this close above 0.5 may round to it in a logarithm
STARTS = {"given": 0, "topk": 1, "peaks": 2, "farthest": 3}

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


# ---------------------------------------------------------------- compiling


def prepare(exact: torch.dtype) -> None:
    """Compile every kernel for float32 or float64, or load it from numba's cache.

    Raises RuntimeError or OSError where the cache cannot be written, and RuntimeError where numba is switched off.
    """
    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is switched off by NUMBA_DISABLE_JIT")
    real, whole = (types.float64, types.int64) if exact == torch.float64 else (types.float32, types.int32)
    table, cube = types.Array(real, 2, "C"), types.Array(real, 3, "C")
    size, index = types.int64, types.Array(types.int64, 2, "C")
    line, bits = types.Array(real, 1, "C"), types.Array(whole, 1, "C")
    kernels = {
        _centre_sets: (line, bits, size, size, table, cube),
        _distance_sets: (cube, cube),
        _start_sets: (size, cube, table, index),
        _medoids_sets: (size, cube, types.boolean, table, table, size, index, index),
        _means_sets: (size, cube, types.boolean, table, table, size, index, cube, index),
    }
    for kernel, arguments in kernels.items():
        kernel.compile((size, size, size, *arguments))


# ---------------------------------------------------------------- sets on several threads


def sets_at_a_time(n: int, width: int) -> int:
    """How many sets go through all steps together: as many as stay in a core's cache, for every thread."""
    return max(1, SET_NUMBERS // (n * (n + width))) * torch.get_num_threads()


def _over_sets(kernel: Callable[..., bool], begin: int, end: int, n: int, *arguments: object) -> bool:
    """kernel(first, last, begin, *arguments) for parts of the sets from begin to end; whether all returned True."""
    count = end - begin
    threads = min(torch.get_num_threads(), count, count * n * n // THREAD_PAIRS)
    if threads <= 1:
        return kernel(begin, end, begin, *arguments)
    cuts = [begin + count * part // threads for part in range(threads + 1)]
    pool = _threads(os.getpid(), threads - 1)
    others = [pool.submit(kernel, first, last, begin, *arguments) for first, last in pairwise(cuts[1:])]
    own = kernel(begin, cuts[1], begin, *arguments)
    return all([own, *(other.result() for other in others)])


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """The threads of one process; a forked one has another number, and so other threads."""
    return ThreadPoolExecutor(count, thread_name_prefix="tpbench-clustering")


# ---------------------------------------------------------------- the operators


def kmedoids(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """All steps of the operator `clustering.kmedoids`."""
    medoids = torch.empty(x.shape[0], k, dtype=torch.int64)
    assignment = torch.empty(weight.shape, dtype=torch.int64)
    _cluster(_medoids_sets, x, weight, score, first, start, iterations, medoids, assignment)
    return medoids, assignment


def kmeans(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """All steps of the operator `clustering.kmeans`."""
    batch, n = weight.shape
    chosen = torch.empty(batch, k, dtype=torch.int64)
    share = torch.empty(batch, k, n, dtype=torch.promote_types(x.dtype, torch.float32))
    assignment = torch.empty(batch, n, dtype=torch.int64)
    _cluster(_means_sets, x, weight, score, first, start, iterations, chosen, share, assignment)
    return share, assignment


def _cluster(
    kernel: Callable[..., bool],
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    first: Tensor | None,
    start: str,
    iterations: int,
    chosen: Tensor,
    *found: Tensor,
) -> None:
    """Products, start and iterations, a few sets at a time in the same room. chosen [B, K] takes the tokens to start
    from, or holds them, and found takes what the kernel finds."""
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    batch, n, width = x.shape
    if first is None and start == "topk" and torch.promote_types(score.dtype, exact.dtype) != exact.dtype:
        first = clustering.heaviest(score, chosen.shape[1])  # its order must not be rounded
    if first is not None:
        chosen.copy_(first)
        start = "given"
    weight, score = _array(weight, exact.dtype), _array(score, exact.dtype)
    size = min(max(1, batch), sets_at_a_time(n, width))
    centred = exact.new_empty(size, n, width)
    products = exact.new_empty(size, n, n)
    pairs, results = products.numpy(), [tensor.numpy() for tensor in (chosen, *found)]
    for begin in range(0, batch, size):
        part = exact[begin : begin + size]
        _multiply(_centre(part, centred[: len(part)]), products[: len(part)], x.dtype)
        given = (STARTS[start], pairs, True, weight, score, iterations, *results)
        _run(kernel, begin, begin + len(part), n, *given)


def _run(kernel: Callable[..., bool], begin: int, end: int, n: int, *arguments: object) -> None:
    if not _over_sets(kernel, begin, end, n, *arguments):
        raise IndexError(f"a token to start from is not among the {n} tokens")


def _array(x: Tensor, dtype: torch.dtype) -> np.ndarray:
    return x.detach().to(dtype).contiguous().numpy()


# ---------------------------------------------------------------- distances


def inner_products(x: Tensor) -> Tensor:
    """Inner products of the tokens about their mean: [B, N, N] float32 (float64 for float64)."""
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    batch, n, width = x.shape
    products = exact.new_empty(batch, n, n)
    _multiply(_centre(exact, exact.new_empty(batch, n, width)), products, x.dtype)
    return products


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32 (float64 for float64), symmetric to the last bit, 0 on the diagonal."""
    return distances_from(inner_products(x))


def distances_from(products: Tensor) -> Tensor:
    """Squared distances [B, N, N] from inner products [B, N, N] about any point."""
    batch, n, _ = products.shape
    distance = products.new_empty(batch, n, n)
    _over_sets(_distance_sets, 0, batch, n, _array(products, products.dtype), distance.numpy())
    return distance


def _centre(x: Tensor, room: Tensor) -> Tensor:
    """x [B, N, C] less the rounded mean of each set: in the room, or as the definition has it."""
    batch, n, width = x.shape
    if batch == 0 or x.stride(2) != 1:
        return x - clustering.offset(x)  # PyTorch adds and multiplies in another order where channels lie apart
    span = (batch - 1) * x.stride(0) + (n - 1) * x.stride(1) + width
    numbers = x.as_strided((span,), (1,)).numpy()
    bits = numbers.view(np.int64 if x.dtype == torch.float64 else np.int32)
    mean = x.mean(1).numpy()  # PyTorch's own: nobody else adds in its order
    if _over_sets(_centre_sets, 0, batch, n, numbers, bits, x.stride(0), x.stride(1), mean, room.numpy()):
        return room
    return x - clustering.offset(x)


def _multiply(centred: Tensor, room: Tensor, given: torch.dtype) -> None:
    """Inner products [B, N, N] of centred tokens [B, N, C] that were given in a dtype."""
    if given != torch.bfloat16 or not multiplies_bfloat16():
        torch.bmm(centred, centred.transpose(1, 2), out=room)
        return
    rounded = centred.bfloat16().float()
    with _bfloat16_products():
        torch.bmm(rounded, rounded.transpose(1, 2), out=room)


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
def _largest(bits, set_start, row_stride, n, width, room):
    """The largest size of a number of one set, by the bits: without the sign they are in the order of the numbers."""
    mask = np.iinfo(bits.dtype).max
    most = bits.dtype.type(0)
    for i in range(n):
        row = bits[set_start + i * row_stride :][:width]
        for c in range(width):
            most = max(most, bits.dtype.type(row[c] & bits.dtype.type(mask)))
    room.view(bits.dtype)[0] = most
    return room[0]


@_compiled
def _centre_sets(begin, end, base, x, bits, set_stride, row_stride, mean, centred):  # noqa: ARG001
    """x holds the numbers of all sets. False where one is not finite or the rounding of the mean is not certain."""
    _, n, width = centred.shape
    offset = np.empty(width, x.dtype)
    room = np.empty(1, x.dtype)
    for b in range(begin, end):
        largest = _largest(bits, b * set_stride, row_stride, n, width, room)
        if not math.isfinite(largest):
            return False
        mantissa, power = math.frexp(max(largest, x.dtype.type(1.1754943508222875e-38)))
        if mantissa == 0.5:
            power -= 1
        elif mantissa < NEAR_POWER:
            return False
        step = x.dtype.type(math.ldexp(1.0, power)) / x.dtype.type(128)
        for c in range(width):
            offset[c] = np.rint(mean[b, c] / step) * step
        for i in range(n):
            row, out = x[b * set_stride + i * row_stride :][:width], centred[b, i]
            for c in range(width):
                out[c] = row[c] - offset[c]
    return True


@_compiled
def _distances(products, distance, norm, tile):
    """distance [N, N] may be products. Numbers below the diagonal are read through a tile laid on its side."""
    n, zero = len(products), products.dtype.type(0)
    for i in range(n):
        norm[i] = products[i, i]
    for top in range(0, n, TILE):
        for left in range(top, n, TILE):
            height, width = min(TILE, n - top), min(TILE, n - left)
            for j in range(width):
                row, length = products[left + j][top : top + height], norm[left + j]
                for i in range(height):
                    tile[i, j] = length - row[i]
            for i in range(height):
                row, length, half = products[top + i][left : left + width], norm[top + i], tile[i]
                out = distance[top + i][left : left + width]
                for j in range(width):
                    apart = (length - row[j]) + half[j]
                    apart = zero if apart < zero else apart
                    out[j] = apart
                    half[j] = apart
            for j in range(width):
                out = distance[left + j][top : top + height]
                for i in range(height):
                    out[i] = tile[i, j]


@_compiled
def _distance_sets(begin, end, base, products, distance):  # noqa: ARG001
    norm = np.empty(products.shape[1], products.dtype)
    tile = np.empty((TILE, TILE), products.dtype)
    for b in range(begin, end):
        _distances(products[b], distance[b], norm, tile)
    return True


# ---------------------------------------------------------------- where to start


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
    arrays = _array(distance, score.dtype), _array(score, score.dtype)
    _over_sets(_start_sets, 0, batch, n, STARTS[start], *arrays, first.numpy())
    return first


@_compiled
def _ranks(score, rank):
    """How many tokens are heavier than each: larger, or as large with a lower index; NaN is larger than numbers."""
    n, missing = len(score), 0
    rank[:] = 0
    for j in range(n):
        value = score[j]
        missing += value != value
        before, behind = rank[:j], rank[j + 1 :]
        for i in range(j):
            before[i] += np.int32(value > score[i])
        later = score[j + 1 :]
        for i in range(n - j - 1):
            behind[i] += np.int32(value >= later[i])
    if missing > 0:
        _ranks_with_nan(score, rank)


@_compiled
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


@_compiled
def _first_of(rank, first):
    for i in range(len(rank)):
        if rank[i] < len(first):
            first[rank[i]] = i


@_compiled
def _peaks(distance, score, rank, apart, first):
    n, far = len(score), score.dtype.type(np.inf)
    _ranks(score, rank)
    for i in range(n):  # the definition's distance where no other token is heavier
        apart[i] = distance[i, i] + score.dtype.type(np.finfo(score.dtype).max)
    for j in range(n):
        row, place = distance[j], rank[j]
        for i in range(n):
            least, here = apart[i], row[i]
            seen = here if (place < rank[i]) | (here != here) else far
            apart[i] = seen if (seen < least) | (seen != seen) else least
    for i in range(n):
        apart[i] = far if rank[i] == 0 else score[i] * apart[i]
    _ranks(apart, rank)
    _first_of(rank, first)


@_compiled
def _farthest(distance, score, rank, nearest, first):
    n, nothing = len(score), score.dtype.type(-np.inf)
    taken = np.zeros(n, np.bool_)
    _ranks(score, rank)
    _first_of(rank, first[:1])
    nearest[:] = distance[first[0]]
    taken[first[0]] = True
    for turn in range(1, len(first)):
        chosen, most = 0, nothing
        for i in range(n):
            gain = nothing if taken[i] else score[i] * nearest[i]
            if gain > most or gain != gain:
                chosen, most = i, gain
            if gain != gain:
                break
        first[turn] = chosen
        taken[chosen] = True
        row = distance[chosen]
        for i in range(n):
            least, here = nearest[i], row[i]
            nearest[i] = here if (here < least) | (here != here) else least


@_compiled
def _start(start, distance, score, rank, room, first):
    if start == 1:
        _ranks(score, rank)
        _first_of(rank, first)
    elif start == 2:
        _peaks(distance, score, rank, room, first)
    elif start == 3:
        _farthest(distance, score, rank, room, first)


@_compiled
def _start_sets(begin, end, base, start, distance, score, first):  # noqa: ARG001
    rank = np.empty(score.shape[1], np.int32)
    room = np.empty(score.shape[1], score.dtype)
    for b in range(begin, end):
        _start(start, distance[b], score[b], rank, room, first[b])
    return True


@_compiled
def _inside(first, n):
    return first.min() >= 0 and first.max() < n


# ---------------------------------------------------------------- K-Medoids


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    medoids = first.clone(memory_format=torch.contiguous_format)
    assignment = first.new_empty(weight.shape)
    pairs, weight = _array(distance, distance.dtype), _array(weight, distance.dtype)
    given = (STARTS["given"], pairs, False, weight, weight, iterations)
    _run(_medoids_sets, 0, *weight.shape, *given, medoids.numpy(), assignment.numpy())
    return medoids, assignment


@_compiled
def _nearest_medoid(distance, medoids, best, label):
    """The first nearest medoid of every token, NaN before all numbers; a medoid's own cluster is its own.

    Four medoids at a time, so that the results so far are read and written a quarter as often.
    """
    n, k = len(label), len(medoids)
    best[:] = distance[medoids[0]]
    label[:] = 0
    number = 1
    while number + 4 <= k:
        one, two = distance[medoids[number]], distance[medoids[number + 1]]
        three, four = distance[medoids[number + 2]], distance[medoids[number + 3]]
        first = np.int32(number)
        for i in range(n):
            least, which = best[i], label[i]
            nearer = _comes_before(one[i], least)
            least, which = one[i] if nearer else least, first if nearer else which
            nearer = _comes_before(two[i], least)
            least, which = two[i] if nearer else least, np.int32(first + 1) if nearer else which
            nearer = _comes_before(three[i], least)
            least, which = three[i] if nearer else least, np.int32(first + 2) if nearer else which
            nearer = _comes_before(four[i], least)
            best[i] = four[i] if nearer else least
            label[i] = np.int32(first + 3) if nearer else which
        number += 4
    while number < k:
        row, first = distance[medoids[number]], np.int32(number)
        for i in range(n):
            least = best[i]
            nearer = _comes_before(row[i], least)
            best[i] = row[i] if nearer else least
            label[i] = first if nearer else label[i]
        number += 1
    for number in range(k):
        label[medoids[number]] = number


@_compiled
def _comes_before(value, least):
    """As PyTorch's minimum has it: NaN before every number, and the first NaN stays."""
    return (value < least) | ((value != value) & (least == least))


@_compiled
def _gather_members(label, begins, members):
    """A counting sort. members [N]: the tokens of cluster c, in rising order, from begins[c] to begins[c + 1]."""
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
def _move_medoids(distance, weight, begins, members, medoids):
    """Every medoid moves to the cheapest member of its cluster; whether any moved."""
    moved = False
    for number in range(len(medoids)):
        mine = members[begins[number] : begins[number + 1]]
        if len(mine) > 0:
            chosen = _cheapest(distance, weight, mine, medoids[number])
            moved |= chosen != medoids[number]
            medoids[number] = chosen
    return moved


@_compiled
def _medoids_sets(begin, end, base, start, pairs, products, weight, score, iterations, medoids, assignment):
    """pairs: products, which become distances in place, or distances; of the sets from base on.

    False where a token to start from does not exist.
    """
    n, k = weight.shape[1], medoids.shape[1]
    best = np.empty(n, pairs.dtype)
    label = np.empty(n, np.int32)
    rank = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    tile = np.empty((TILE, TILE), pairs.dtype)
    for b in range(begin, end):
        distance = pairs[b - base]
        if products:
            _distances(distance, distance, best, tile)
        _start(start, distance, score[b], rank, best, medoids[b])
        if not _inside(medoids[b], n):
            return False
        _nearest_medoid(distance, medoids[b], best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            if not _move_medoids(distance, weight[b], begins, members, medoids[b]):
                break
            _nearest_medoid(distance, medoids[b], best, label)
        assignment[b] = label
    return True


# ---------------------------------------------------------------- K-Means


def iterate_means(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    (batch, n), k = weight.shape, first.shape[1]
    share = products.new_empty(batch, k, n)
    assignment = first.new_empty(batch, n)
    chosen = first.clone(memory_format=torch.contiguous_format)
    pairs, weight = _array(products, products.dtype), _array(weight, products.dtype)
    given = (STARTS["given"], pairs, True, weight, weight, iterations)
    _run(_means_sets, 0, batch, n, *given, chosen.numpy(), share.numpy(), assignment.numpy())
    return share, assignment


@_compiled
def _nearest_mean(norm, inner, best, label):
    """The first nearest centre of every token by |c|^2 - 2 c.x, NaN before all numbers."""
    for number in range(len(norm)):
        row, length, name = inner[number], norm[number], np.int32(number)
        for i in range(len(label)):
            least = best[i]
            apart = length - (row[i] + row[i])
            nearer = _comes_before(apart, least) | (name == 0)
            best[i] = apart if nearer else least
            label[i] = name if nearer else label[i]


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
        part, row = weight[member] / total, products[member]
        share[member] = part
        for i in range(len(inner)):
            inner[i] += row[i] * part
    norm = weight.dtype.type(0)
    for member in members:
        norm += share[member] * inner[member]
    return norm


@_compiled
def _begin_means(products, first, share, inner, norm):
    """Every centre at its first token."""
    share[:] = 0
    for number in range(len(first)):
        token = first[number]
        share[number, token] = 1
        inner[number] = products[token]
        norm[number] = products[token, token]


@_compiled
def _means_sets(begin, end, base, start, pairs, products, weight, score, iterations, chosen, share, assignment):  # noqa: ARG001
    """pairs: products of the sets from base on. False where a token to start from does not exist."""
    n, k = weight.shape[1], chosen.shape[1]
    inner = np.empty((k, n), pairs.dtype)  # c_k . x_i and |c_k|^2
    norm = np.empty(k, pairs.dtype)
    best = np.empty(n, pairs.dtype)
    label = np.empty(n, np.int32)
    before = np.empty(n, np.int32)
    rank = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    tile = np.empty((TILE, TILE), pairs.dtype)
    distance = np.empty((n, n) if start > 1 else (1, 1), pairs.dtype)
    for b in range(begin, end):
        dots = pairs[b - base]
        if start > 1:
            _distances(dots, distance, best, tile)
        _start(start, distance, score[b], rank, best, chosen[b])
        if not _inside(chosen[b], n):
            return False
        _begin_means(dots, chosen[b], share[b], inner, norm)
        _nearest_mean(norm, inner, best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            for number in range(k):
                mine = members[begins[number] : begins[number + 1]]
                norm[number] = _move_mean(dots, weight[b], mine, share[b, number], inner[number], norm[number])
            before[:] = label
            _nearest_mean(norm, inner, best, label)
            if np.array_equal(before, label):
                break
        assignment[b] = label
    return True
