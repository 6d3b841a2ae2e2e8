"""The fused distances of `clustering_triton`: inner products and squared distances of all pairs, for CUDA devices.

Shapes: B sets, N tokens, C width. Distances are made by tiles on and above the diagonal and mirrored, so that they are
symmetric to the last bit.

float32 tokens, which a model under autocast has too, are centred as in the definition. Tensor cores read 11 of their 24
bits, so each number is split in two such parts, and three products of parts give what one product in full precision
would, but for the last bits (`_multiplied`). bfloat16 and float16 tokens go to the tensor cores as they are, with sums
in float32: they hold 8 or 11 bits, so what the missing centring loses to cancellation is below their own rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_FLOAT32 = True  # False: float32 tokens are multiplied in full precision, outside the tensor cores


def inner_products(x: Tensor) -> Tensor:
    """Inner products [B, N, N] float32 of x [B, N, C]; float32 tokens about their mean, others about zero."""
    return _pairs(x, distance=False)


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32, symmetric to the last bit, 0 on the diagonal."""
    return _pairs(x, distance=True)


def _pairs(x: Tensor, distance: bool) -> Tensor:
    batch, n, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    pairs = empty_pairs(x)
    centred = x.dtype == torch.float32
    tile = 64
    offset = x.new_empty(batch, width) if centred else x
    if centred:
        block = triton.next_power_of_2(width)
        _offset_kernel[(batch,)](x, offset, *x.stride()[:2], n, width, ROWS=max(1, 4096 // block), C=block, num_warps=4)
    tiles = triton.cdiv(n, tile)
    _pairs_kernel[(tiles, tiles, batch)](
        x, offset, pairs, *x.stride()[:2], *pairs.stride()[:2], n, width,
        DISTANCE=distance, CENTRED=centred, SPLIT=centred and SPLIT_FLOAT32, UPCAST=_upcast(x), TILE=tile,
        C=32 if centred else 64, num_warps=4,
    )  # fmt: skip
    return pairs


def empty_pairs(x: Tensor) -> Tensor:
    """An empty [B, N, N] float32 whose rows start at multiples of 16 numbers, so that they are read four at a time."""
    batch, n, _ = x.shape
    return x.new_empty(batch, n, triton.cdiv(n, 16) * 16, dtype=torch.float32)[:, :, :n]


def readable_part(pairs: Tensor) -> tuple[int, int, int]:
    """Strides of a set and of a row of [B, N, N], and how many numbers of a row may be read.

    Rows made by `empty_pairs` may be read up to their padding, so that loads need no mask within it.
    """
    row = pairs.stride(1)
    n = pairs.shape[2]
    return pairs.stride(0), row, row if row == triton.cdiv(n, 16) * 16 else n


def lanes_for(n: int) -> tuple[int, int, int]:
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
def _high_part(values):
    """The nearest numbers of 11 significant bits, which tensor cores read exactly; NaN stays NaN."""
    bits = values.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(values == values, nearest, values)


@triton.jit
def _multiplied(a, b, total, SPLIT: tl.constexpr):
    """total + a @ b^T. With SPLIT the product of the two low parts is left out: 2^-22 of what is added."""
    if SPLIT:
        high_a = _high_part(a)
        high_b = _high_part(b)
        low_a = _high_part(a - high_a)
        low_b = _high_part(b - high_b)
        total = tl.dot(low_a, tl.trans(high_b), total, input_precision="tf32")
        total = tl.dot(high_a, tl.trans(low_b), total, input_precision="tf32")
        total = tl.dot(high_a, tl.trans(high_b), total, input_precision="tf32")
    else:
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def _pairs_kernel(
    x, offset, pairs, x_b, x_n, pairs_b, pairs_n, n, width,
    DISTANCE: tl.constexpr, CENTRED: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr, TILE: tl.constexpr,
    C: tl.constexpr,
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
            product = _multiplied(a, b, product, SPLIT)
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
