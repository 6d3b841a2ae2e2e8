"""The fused twins of `tpbench.kernels.clustering`, for CUDA devices: same names, signatures and answers.

Shapes: B sets, N tokens, K clusters, C width. Distances are made by tiles on and above the diagonal and mirrored, so
that they are symmetric to the last bit. Everything after that is one program for each set: the tokens are its lanes,
it walks over candidates (rows of the distances, which stay in the L2 cache) a few at a time, keeps a running result
for every lane and every one of these few, and joins them once at the end. What lanes must know of each other goes
through memory, behind a barrier; a set is never waited for by another, and nothing by the host.

float32 tokens are centred and multiplied in full precision, as in the definition. bfloat16 and float16 tokens go to
the tensor cores as they are, with sums in float32: they hold 8 or 11 bits, so what the missing centring loses to
cancellation is below their own rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# ---------------------------------------------------------------- distances


def inner_products(x: Tensor) -> Tensor:
    """Inner products [B, N, N] float32 of x [B, N, C]; float32 tokens about their mean, others about zero."""
    return _pairs(x, distance=False)


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32, symmetric to the last bit, 0 on the diagonal."""
    return _pairs(x, distance=True)


def _pairs(x: Tensor, distance: bool) -> Tensor:
    batch, n, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    pairs = room_for_pairs(x)
    centred = x.dtype == torch.float32
    tile = 64
    offset = x.new_empty(batch, width) if centred else x
    if centred:
        block = triton.next_power_of_2(width)
        _offset_kernel[(batch,)](x, offset, *x.stride()[:2], n, width, ROWS=max(1, 4096 // block), C=block, num_warps=4)
    tiles = triton.cdiv(n, tile)
    _pairs_kernel[(tiles, tiles, batch)](
        x, offset, pairs, *x.stride()[:2], *pairs.stride()[:2], n, width,
        DISTANCE=distance, CENTRED=centred, UPCAST=_upcast(x), TILE=tile, C=32 if centred else 64, num_warps=4,
    )  # fmt: skip
    return pairs


def room_for_pairs(x: Tensor) -> Tensor:
    """An empty [B, N, N] float32 whose rows start at multiples of 16 numbers, so that they are read four at a time."""
    batch, n, _ = x.shape
    return x.new_empty(batch, n, triton.cdiv(n, 16) * 16, dtype=torch.float32)[:, :, :n]


def _readable(pairs: Tensor) -> tuple[int, int, int]:
    """Strides of a set and of a row of [B, N, N], and how many numbers of a row may be read: with `room_for_pairs`
    the padding too, so that loads need no mask within it."""
    row = pairs.stride(1)
    n = pairs.shape[2]
    return pairs.stride(0), row, row if row == triton.cdiv(n, 16) * 16 else n


def _lanes(n: int) -> tuple[int, int, int]:
    """Lanes for n tokens, rows to walk over at a time, and warps: 32 running results in every thread."""
    lanes = max(64, triton.next_power_of_2(n))
    warps = 4 if lanes <= 256 else 8
    return lanes, warps * 1024 // lanes, warps


def _upcast(x: Tensor) -> bool:
    """Triton's interpreter cannot calculate in bfloat16."""
    return x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret


@triton.jit
def _offset_kernel(x, offset, x_b, x_n, n, width, ROWS: tl.constexpr, C: tl.constexpr):
    """The mean of one set, rounded to a 128th of the power of two above its largest number (see `offset`)."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    largest = tl.zeros([ROWS, C], tl.float32)
    total = tl.zeros([ROWS, C], tl.float32)
    for first in range(0, n, ROWS):
        inside = ((first + row)[:, None] < n) & (channel[None, :] < width)
        values = tl.load(x + image * x_b + (first + row)[:, None] * x_n + channel[None, :], mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.abs(values))
        total += values
    step = tl.exp2(tl.ceil(tl.log2(tl.maximum(tl.max(tl.max(largest, 1), 0), 1.1754943508222875e-38)))) / 128
    mean = tl.sum(total, 0) / n
    tl.store(offset + image * width + channel, tl.floor(mean / step + 0.5) * step, mask=channel < width)


@triton.jit
def _tokens(x, offset, row, channel, x_n, n, width, CENTRED: tl.constexpr, UPCAST: tl.constexpr):
    """[rows, channels] of one set, 0 beyond its ends."""
    inside = (row[:, None] < n) & (channel[None, :] < width)
    values = tl.load(x + row[:, None] * x_n + channel[None, :], mask=inside, other=0.0)
    if UPCAST:
        values = values.to(tl.float32)
    if CENTRED:
        mean = tl.load(offset + channel, mask=channel < width, other=0.0)
        values = tl.where(inside, values - mean[None, :], 0.0)
    return values


@triton.jit
def _pairs_kernel(
    x, offset, pairs, x_b, x_n, pairs_b, pairs_n, n, width,
    DISTANCE: tl.constexpr, CENTRED: tl.constexpr, UPCAST: tl.constexpr, TILE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One tile of inner products or squared distances, and its mirror image."""
    image = tl.program_id(2).to(tl.int64)
    if tl.program_id(1) >= tl.program_id(0):
        left = tl.program_id(0) * TILE + tl.arange(0, TILE)
        right = tl.program_id(1) * TILE + tl.arange(0, TILE)
        x += image * x_b
        offset += image * width
        product = tl.zeros([TILE, TILE], tl.float32)
        left_norm = tl.zeros([TILE], tl.float32)
        right_norm = tl.zeros([TILE], tl.float32)
        for first in range(0, width, C):
            channel = first + tl.arange(0, C)
            a = _tokens(x, offset, left, channel, x_n, n, width, CENTRED, UPCAST)
            b = _tokens(x, offset, right, channel, x_n, n, width, CENTRED, UPCAST)
            product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
            if DISTANCE:
                wide_a = a.to(tl.float32)
                wide_b = b.to(tl.float32)
                left_norm += tl.sum(wide_a * wide_a, 1)
                right_norm += tl.sum(wide_b * wide_b, 1)
        if DISTANCE:
            product = tl.maximum(left_norm[:, None] + right_norm[None, :] - 2 * product, 0.0, tl.PropagateNan.ALL)
            product = tl.where(left[:, None] == right[None, :], 0.0, product)
        # Above the diagonal only: what is below is copied from there, to the last bit.
        upper = (left[:, None] <= right[None, :]) & (right[None, :] < n)
        pairs += image * pairs_b
        tl.store(pairs + left[:, None] * pairs_n + right[None, :], product, mask=upper)
        tl.store(pairs + right[None, :] * pairs_n + left[:, None], product, mask=upper)


# ---------------------------------------------------------------- where to start


def heaviest(score: Tensor, k: int) -> Tensor:
    """Indices [B, K] of the k largest of score [B, N], largest first; ties go to the lower index, NaN comes first."""
    batch, n = score.shape
    lanes, rows, warps = _lanes(n)
    index = torch.empty(batch, k, dtype=torch.int64, device=score.device)
    _heaviest_kernel[(batch,)](score.float().contiguous(), index, n, k, ROWS=rows, N=lanes, num_warps=warps)
    return index


def peaks(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """The k tokens that stand out among the heavier ones: [B, K]."""
    batch, n = score.shape
    lanes, rows, warps = _lanes(n)
    gain = torch.empty(batch, n, dtype=torch.float32, device=score.device)
    score = score.float().contiguous()
    _gain_kernel[(batch,)](distance, score, gain, *_readable(distance), n, ROWS=rows, N=lanes, num_warps=warps)
    return heaviest(gain, k)


def farthest(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """Weighted farthest-first traversal: [B, K]."""
    batch, n = score.shape
    index = torch.empty(batch, k, dtype=torch.int64, device=score.device)
    lanes = _lanes(n)[0]
    score = score.float().contiguous()
    _farthest_kernel[(batch,)](distance, score, index, *_readable(distance), n, k, N=lanes, num_warps=4)
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
    """Score times the least distance to a heavier token; infinity for the heaviest."""
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


# ---------------------------------------------------------------- K-Medoids


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    batch, n = weight.shape
    lanes, rows, warps = _lanes(n)
    medoids = first.clone(memory_format=torch.contiguous_format)
    assignment = torch.empty(batch, n, dtype=torch.int64, device=first.device)
    cheapest = torch.empty_like(medoids)
    _medoids_kernel[(batch,)](
        distance, weight.contiguous(), medoids, assignment, cheapest,
        *_readable(distance), n, first.shape[1], iterations, ROWS=rows, N=lanes, num_warps=warps,
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
    lanes, rows, warps = _lanes(n)
    share = products.new_empty(batch, k, n)
    inner = room_for_pairs(products)[:, :k]
    norm = products.new_empty(batch, k)
    assignment = torch.empty(batch, n, dtype=torch.int64, device=first.device)
    _means_kernel[(batch,)](
        products, weight.contiguous(), first.contiguous(), share, inner, norm, assignment,
        *products.stride()[:2], inner.stride(0), *_readable(inner)[1:], n, k, iterations,
        ROWS=rows, N=lanes, K=16, COLUMNS=64, MEMBERS=32, num_warps=warps,
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
def _shares(weight, assignment, number, total, member, n):
    """The part that members have in the centres of clusters `number`: [K, members], 0 for those of other clusters."""
    label = tl.load(assignment + member, mask=member < n, other=-1).to(tl.int32)
    own_weight = tl.load(weight + member, mask=member < n, other=0.0)
    belongs = label[None, :] == number[:, None]
    return tl.where(belongs & (total[:, None] > 0), own_weight[None, :] / total[:, None], 0.0)


@triton.jit
def _move_means(
    products, weight, share, inner, norm, assignment, p_n, i_n, number, n, k,
    COLUMNS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """Clusters `number` [K] move to the weighted means of their members; those without weight stay."""
    total = tl.zeros(number.shape, tl.float32)
    for first in range(0, n, MEMBERS):
        member = first + tl.arange(0, MEMBERS)
        label = tl.load(assignment + member, mask=member < n, other=-1).to(tl.int32)
        own_weight = tl.load(weight + member, mask=member < n, other=0.0)
        total += tl.sum(tl.where(label[None, :] == number[:, None], own_weight[None, :], 0.0), 1)
    heavy = (number < k) & (total > 0)
    length = tl.zeros(number.shape, tl.float32)
    for left in range(0, n, COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        along = tl.zeros([number.shape[0], COLUMNS], tl.float32)
        for first in range(0, n, MEMBERS):
            member = first + tl.arange(0, MEMBERS)
            inside = (member[:, None] < n) & (column[None, :] < n)
            rows = tl.load(products + member[:, None] * p_n + column[None, :], mask=inside, other=0.0)
            along = tl.dot(_shares(weight, assignment, number, total, member, n), rows, along, input_precision="ieee")
        part = _shares(weight, assignment, number, total, column, n)
        length += tl.sum(part * along, 1)
        kept = heavy[:, None] & (column[None, :] < n)
        tl.store(inner + number[:, None] * i_n + column[None, :], along, mask=kept)
        tl.store(share + number[:, None] * n + column[None, :], part, mask=kept)
    tl.store(norm + number, length, mask=heavy)


@triton.jit
def _means_kernel(
    products, weight, first, share, inner, norm, assignment,
    p_b, p_n, i_b, i_n, readable, n, k, iterations,
    ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """All iterations of one set. inner [K, N] and norm [K] are scratch: c_k . x_i and |c_k|^2."""
    image = tl.program_id(0).to(tl.int64)
    products += image * p_b
    weight += image * n
    share += image * k * n
    inner += image * i_b
    norm += image * k
    assignment += image * n
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
        for start in range(0, k, K):
            number = start + tl.arange(0, K)
            _move_means(
                products, weight, share, inner, norm, assignment, p_n, i_n, number, n, k, COLUMNS, MEMBERS
            )  # fmt: skip
        tl.debug_barrier()
        before, label = label, _nearest_mean(inner, norm, i_n, readable, lane, k, ROWS, N)
        moved = tl.sum((mine & (label != before)).to(tl.int32), 0)
        turn += 1
    tl.store(assignment + lane, label.to(tl.int64), mask=mine)
