"""The fused starts of `clustering_triton`: which tokens are the first medoids or centres, for CUDA devices.

Shapes: B sets, N tokens, K clusters. One program for each set; the tokens are its lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tpbench.kernels.distances_triton import lanes_for, readable_part


def heaviest(score: Tensor, k: int) -> Tensor:
    """Indices [B, K] of the k largest of score [B, N], largest first; ties go to the lower index, NaN comes first."""
    batch, n = score.shape
    lanes, rows, warps = lanes_for(n)
    index = torch.empty(batch, k, dtype=torch.int64, device=score.device)
    _heaviest_kernel[(batch,)](score.float().contiguous(), index, n, k, ROWS=rows, N=lanes, num_warps=warps)
    return index


def peaks(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """The k tokens that stand out among the heavier ones: [B, K]."""
    batch, n = score.shape
    lanes, rows, warps = lanes_for(n)
    gain = torch.empty(batch, n, dtype=torch.float32, device=score.device)
    score = score.float().contiguous()
    _gain_kernel[(batch,)](distance, score, gain, *readable_part(distance), n, ROWS=rows, N=lanes, num_warps=warps)
    return heaviest(gain, k)


def farthest(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """Weighted farthest-first traversal: [B, K]."""
    batch, n = score.shape
    index = torch.empty(batch, k, dtype=torch.int64, device=score.device)
    lanes = lanes_for(n)[0]
    score = score.float().contiguous()
    _farthest_kernel[(batch,)](distance, score, index, *readable_part(distance), n, k, N=lanes, num_warps=4)
    return index


@triton.jit
def _order(score):
    """Integers in the order of the scores, equal where these are; not-a-number is above infinity."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0.0: minus zero is zero
    bits = tl.where(score != score, 0x7FFFFFFF, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _heavier(score, first, lane, mine, n, ROWS: tl.constexpr):
    """Whether token first + row is heavier than the token of a lane: [ROWS, N]; of equal ones the lower index is."""
    row = first + tl.arange(0, ROWS)
    theirs = _order(tl.load(score + row, mask=row < n, other=float("-inf")))
    equal_wins = (row[:, None] < lane[None, :]) & (theirs[:, None] == mine[None, :])
    return (row[:, None] < n) & ((theirs[:, None] > mine[None, :]) | equal_wins)


@triton.jit
def _heaviest_kernel(score, index, n, k, ROWS: tl.constexpr, N: tl.constexpr):
    """Every token counts how many are heavier: that is its place."""
    image = tl.program_id(0).to(tl.int64)
    score += image * n
    lane = tl.arange(0, N)
    mine = _order(tl.load(score + lane, mask=lane < n, other=float("-inf")))
    above = tl.zeros([ROWS, N], tl.int32)
    for first in range(0, n, ROWS):
        above += _heavier(score, first, lane, mine, n, ROWS).to(tl.int32)
    place = tl.sum(above, 0)
    tl.store(index + image * k + place, lane.to(tl.int64), mask=(lane < n) & (place < k))


@triton.jit
def _gain_kernel(distance, score, gain, d_b, d_n, readable, n, ROWS: tl.constexpr, N: tl.constexpr):
    """Score times the least distance to a heavier token; infinity for the heaviest token."""
    image = tl.program_id(0).to(tl.int64)
    distance += image * d_b
    score += image * n
    lane = tl.arange(0, N)
    weight = tl.load(score + lane, mask=lane < n, other=0.0)
    mine = _order(weight)
    nearest = tl.full([ROWS, N], float("inf"), tl.float32)
    for first in range(0, n, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row[:, None] < n) & (lane[None, :] < readable)
        apart = tl.load(distance + row[:, None] * d_n + lane[None, :], mask=inside, other=float("inf"))
        heavier = _heavier(score, first, lane, mine, n, ROWS)
        nearest = tl.minimum(nearest, tl.where(heavier, apart, float("inf")), tl.PropagateNan.ALL)
    nearest = tl.min(nearest, 0)
    stands_out = tl.where(nearest == float("inf"), float("inf"), weight * nearest)
    tl.store(gain + image * n + lane, stands_out, mask=lane < n)


@triton.jit
def _farthest_kernel(distance, score, index, d_b, d_n, readable, n, k, N: tl.constexpr):
    """One token after the other: each step reads one row of the distances."""
    image = tl.program_id(0).to(tl.int64)
    distance += image * d_b
    lane = tl.arange(0, N)
    weight = tl.load(score + image * n + lane, mask=lane < n, other=0.0)
    gain = weight
    nearest = tl.full([N], float("inf"), tl.float32)
    free = lane < n
    for step in range(0, k):
        gain = tl.where(gain == gain, gain, float("inf"))  # not-a-number is taken first, and only once
        gain = tl.where(free, gain, -1.0)
        highest = tl.max(gain, 0)
        chosen = tl.min(tl.where(free & (gain == highest), lane, N), 0)
        free = free & (lane != chosen)
        tl.store(index + image * k + step, chosen.to(tl.int64))
        apart = tl.load(distance + chosen * d_n + lane, mask=lane < readable, other=0.0)
        nearest = tl.minimum(nearest, apart, tl.PropagateNan.ALL)
        gain = weight * nearest
