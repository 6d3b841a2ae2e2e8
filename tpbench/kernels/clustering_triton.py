"""The fused twins of `tpbench.kernels.clustering`, for CUDA devices: same names, signatures and answers.

Shapes: B sets, N tokens, K clusters. The steps before the iterations are in `distances_triton` and `starts_triton`.
After the distances, one program handles each set. Its lanes are the tokens. It goes over the candidates (rows of the
distances, which stay in the L2 cache) a few at a time, keeps a running result for every lane and each of these few, and
combines them once at the end. Lanes exchange results through memory, with a barrier in between. No set waits for
another, and the host waits for none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tpbench.kernels.distances_triton import (
    empty_pairs,
    inner_products,
    lanes_for,
    readable_part,
    squared_distances,
)
from tpbench.kernels.starts_triton import farthest, heaviest, peaks

__all__ = [
    "empty_pairs",
    "farthest",
    "heaviest",
    "inner_products",
    "iterate_means",
    "iterate_medoids",
    "peaks",
    "squared_distances",
]


# ---------------------------------------------------------------- K-Medoids


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    batch, n = weight.shape
    lanes, rows, warps = lanes_for(n)
    medoids = first.clone(memory_format=torch.contiguous_format)
    assignment = torch.empty(batch, n, dtype=torch.int64, device=first.device)
    cheapest = torch.empty_like(medoids)
    _medoids_kernel[(batch,)](
        distance, weight.contiguous(), medoids, assignment, cheapest,
        *readable_part(distance), n, first.shape[1], iterations, ROWS=rows, N=lanes, num_warps=warps,
    )  # fmt: skip
    return medoids, assignment


@triton.jit
def _nearer(best, which, candidate, number, inside):
    """The nearer of what was found so far and the next candidates, for every row and lane; the first wins a tie."""
    nearer = inside & (candidate < best)
    return tl.where(nearer, candidate, best), tl.where(nearer, number, which)


@triton.jit
def _first_nearest(best, which):
    """The lowest number among the nearest of all rows: [N]."""
    least = tl.min(best, 0)
    number = tl.min(tl.where(best == least[None, :], which, 0x7FFFFFFF), 0)
    return tl.where(number == 0x7FFFFFFF, 0, number)  # only where nothing could be compared


@triton.jit
def _nearest_medoid(distance, medoids, d_n, readable, lane, k, ROWS: tl.constexpr, N: tl.constexpr):
    """The number of the medoid nearest to each token; a medoid's own comes before all others: [N] int32."""
    best = tl.full([ROWS, N], float("inf"), tl.float32)
    which = tl.zeros([ROWS, N], tl.int32)
    for first in range(0, k, ROWS):
        number = first + tl.arange(0, ROWS)
        medoid = tl.load(medoids + number, mask=number < k, other=0)
        inside = (number[:, None] < k) & (lane[None, :] < readable)
        apart = tl.load(distance + medoid[:, None] * d_n + lane[None, :], mask=inside, other=0.0)
        apart = tl.where(medoid[:, None] == lane[None, :], -1.0, apart)
        best, which = _nearer(best, which, apart, number[:, None], inside)
    return _first_nearest(best, which)


@triton.jit
def _cost_in_cluster(distance, weight, assignment, label, d_n, readable, lane, n, ROWS: tl.constexpr, N: tl.constexpr):
    """What each token would cost as the medoid of its own cluster: [N]."""
    cost = tl.zeros([ROWS, N], tl.float32)
    for first in range(0, n, ROWS):
        row = first + tl.arange(0, ROWS)
        theirs = tl.load(assignment + row, mask=row < n, other=-1).to(tl.int32)
        their_weight = tl.load(weight + row, mask=row < n, other=0.0)
        inside = (row[:, None] < n) & (lane[None, :] < readable)
        apart = tl.load(distance + row[:, None] * d_n + lane[None, :], mask=inside, other=0.0)
        together = inside & (theirs[:, None] == label[None, :])
        cost += tl.where(together, apart * their_weight[:, None], 0.0)
    return tl.sum(cost, 0)


@triton.jit
def _medoids_kernel(
    distance, weight, medoids, assignment, cheapest, d_b, d_n, readable, n, k, iterations,
    ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All iterations of one set. medoids: in the first, out the last; cheapest [K] int64 is scratch."""
    image = tl.program_id(0).to(tl.int64)
    distance += image * d_b
    weight += image * n
    assignment += image * n
    medoids += image * k
    cheapest += image * k
    lane = tl.arange(0, N)
    mine = lane < n
    nobody = 0x7FFFFFFFFFFFFFFF
    label = _nearest_medoid(distance, medoids, d_n, readable, lane, k, ROWS, N)
    moved = 1
    turn = 0
    while (turn < iterations) & (moved > 0):
        tl.store(assignment + lane, label.to(tl.int64), mask=mine)
        tl.store(cheapest + lane, tl.full([N], nobody, tl.int64), mask=lane < k)
        tl.debug_barrier()
        cost = _cost_in_cluster(distance, weight, assignment, label, d_n, readable, lane, n, ROWS, N)
        # Costs are not negative, so their bits are in their order: the least pair (cost, token) is the new medoid.
        ballot = (cost.to(tl.int32, bitcast=True).to(tl.int64) << 32) | lane.to(tl.int64)
        tl.atomic_min(cheapest + label, ballot, mask=mine & (cost == cost))
        tl.debug_barrier()
        winner = tl.load(cheapest + lane, mask=lane < k, other=nobody, cache_modifier=".cg")
        before = tl.load(medoids + lane, mask=lane < k, other=0)
        after = tl.where(winner == nobody, before, winner & 0xFFFFFFFF)
        moved = tl.sum((after != before).to(tl.int32), 0)
        tl.debug_barrier()
        tl.store(medoids + lane, after, mask=lane < k)
        tl.debug_barrier()
        if moved > 0:
            label = _nearest_medoid(distance, medoids, d_n, readable, lane, k, ROWS, N)
        turn += 1
    tl.store(assignment + lane, label.to(tl.int64), mask=mine)


# ---------------------------------------------------------------- K-Means


def iterate_means(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    batch, n = weight.shape
    k = first.shape[1]
    lanes, rows, warps = lanes_for(n)
    share = products.new_empty(batch, k, n)
    inner = empty_pairs(products)[:, :k]
    norm = products.new_empty(batch, k)
    total = torch.empty_like(norm)
    assignment = torch.empty(batch, n, dtype=torch.int64, device=first.device)
    order = torch.empty_like(assignment)
    _means_kernel[(batch,)](
        products, weight.contiguous(), first.contiguous(), share, inner, norm, total, assignment, order,
        *products.stride()[:2], inner.stride(0), *readable_part(inner)[1:], n, k, iterations,
        ROWS=rows, N=lanes, num_warps=warps,
    )  # fmt: skip
    return share, assignment


@triton.jit
def _nearest_mean(inner, norm, i_n, readable, lane, k, ROWS: tl.constexpr, N: tl.constexpr):
    """The number of the centre nearest to each token, by |c|^2 - 2 c.x: [N] int32."""
    best = tl.full([ROWS, N], float("inf"), tl.float32)
    which = tl.zeros([ROWS, N], tl.int32)
    for first in range(0, k, ROWS):
        number = first + tl.arange(0, ROWS)
        length = tl.load(norm + number, mask=number < k, other=0.0)
        inside = (number[:, None] < k) & (lane[None, :] < readable)
        along = tl.load(inner + number[:, None] * i_n + lane[None, :], mask=inside, other=0.0)
        best, which = _nearer(best, which, length[:, None] - 2 * along, number[:, None], inside)
    return _first_nearest(best, which)


@triton.jit
def _order_by_cluster(assignment, order, label, lane, n, ROWS: tl.constexpr, N: tl.constexpr):
    """Write the tokens to order [N] int64 cluster by cluster, each cluster's in rising order."""
    place = tl.zeros([N], tl.int32)
    for first in range(0, n, ROWS):
        token = first + tl.arange(0, ROWS)
        theirs = tl.load(assignment + token, mask=token < n, other=0x7FFFFFFF).to(tl.int32)
        earlier = (theirs[:, None] == label[None, :]) & (token[:, None] < lane[None, :])
        place += tl.sum((earlier | (theirs[:, None] < label[None, :])).to(tl.int32), 0)
    tl.store(order + place, lane.to(tl.int64), mask=lane < n)


@triton.jit
def _move_means(
    products, weight, share, inner, norm, total, assignment, order, label, p_n, i_n, lane, n, k,
    ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The clusters move to the weighted means of their members; those without weight stay."""
    mine = lane < n
    _order_by_cluster(assignment, order, label, lane, n, ROWS, N)
    own_weight = tl.load(weight + lane, mask=mine, other=0.0)
    for first in range(0, k, ROWS):
        number = first + tl.arange(0, ROWS)
        belongs = mine[None, :] & (label[None, :] == number[:, None])
        sums = tl.sum(tl.where(belongs, own_weight[None, :], 0.0), 1)
        heavy = (number < k) & (sums > 0)
        part = tl.where(belongs & heavy[:, None], own_weight[None, :] / sums[:, None], 0.0)
        tl.store(share + number[:, None] * n + lane[None, :], part, mask=heavy[:, None] & mine[None, :])
        tl.store(total + number, sums, mask=number < k)
    tl.debug_barrier()
    along = tl.zeros([N], tl.float32)  # c . x of the cluster whose members pass by
    cluster = -1
    for place in range(0, n):
        member = tl.load(order + place)
        before = cluster
        cluster = tl.load(assignment + member).to(tl.int32)
        sums = tl.load(total + cluster)
        part = tl.where(sums > 0, tl.load(weight + member) / sums, 0.0)
        row = tl.load(products + member * p_n + lane, mask=mine, other=0.0)
        along = tl.where(cluster == before, along, 0.0) + part * row
        written = tl.where(sums > 0, n, 0)
        tl.store(inner + cluster * i_n + lane, along, mask=lane < written)  # the last member's stays
    tl.debug_barrier()
    sums = tl.load(total + label, mask=mine, other=0.0)
    own = tl.load(inner + label * i_n + lane, mask=mine, other=0.0)
    own = tl.where(sums > 0, own_weight / sums * own, 0.0)
    for first in range(0, k, ROWS):
        number = first + tl.arange(0, ROWS)
        length = tl.sum(tl.where(label[None, :] == number[:, None], own[None, :], 0.0), 1)
        tl.store(norm + number, length, mask=(number < k) & (tl.load(total + number, mask=number < k, other=0.0) > 0))


@triton.jit
def _means_kernel(
    products, weight, first, share, inner, norm, total, assignment, order,
    p_b, p_n, i_b, i_n, readable, n, k, iterations,
    ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All iterations of one set. Scratch: inner [K, N] c_k . x_i, norm [K] |c_k|^2, total [K] weights, order [N]."""
    image = tl.program_id(0).to(tl.int64)
    products += image * p_b
    weight += image * n
    share += image * k * n
    inner += image * i_b
    norm += image * k
    total += image * k
    assignment += image * n
    order += image * n
    lane = tl.arange(0, N)
    mine = lane < n
    for start in range(0, k):
        token = tl.load(first + image * k + start)
        tl.store(share + start * n + lane, (lane == token).to(tl.float32), mask=mine)
        tl.store(inner + start * i_n + lane, tl.load(products + token * p_n + lane, mask=mine, other=0.0), mask=mine)
        tl.store(norm + start, tl.load(products + token * p_n + token))
    tl.debug_barrier()
    label = _nearest_mean(inner, norm, i_n, readable, lane, k, ROWS, N)
    moved = 1
    turn = 0
    while (turn < iterations) & (moved > 0):
        tl.store(assignment + lane, label.to(tl.int64), mask=mine)
        tl.debug_barrier()
        _move_means(
            products, weight, share, inner, norm, total, assignment, order, label, p_n, i_n, lane, n, k, ROWS, N
        )  # fmt: skip
        tl.debug_barrier()
        before = label
        label = _nearest_mean(inner, norm, i_n, readable, lane, k, ROWS, N)
        moved = tl.sum((mine & (label != before)).to(tl.int32), 0)
        turn += 1
    tl.store(assignment + lane, label.to(tl.int64), mask=mine)
