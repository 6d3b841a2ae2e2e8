"""The fused twins of `tpbench.kernels.attention`, for CUDA devices: same names, signatures and answers.

Shapes: B images, H heads, N tokens, D head width; M queries by N keys in a tile. Two ways compute the attention
received:

attend_and_receive  one pass for short sequences: all keys of a head fit into one tile, and the column sums are one
                    more reduction of numbers that are in registers anyway. Where they do not fit (float32, wide
                    heads, long sequences), fused attention runs, and then `receive`.
receive             a second pass over the scores, from the log-sum-exp of every row, which comes from the attention
                    that ran before or is computed here.

Sums over queries stay inside one program and sums over heads are added in a fixed order: no atomics, same bits twice.
Exponentials are taken to the base 2, which is what the hardware has. Interpreted on a CPU the kernels read bfloat16 as
float32, because the interpreter cannot calculate in bfloat16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

WIDEST_TILE = 256  # keys of a whole row in one tile
WIDEST_HEAD = 64  # numbers of such a key that still fit the registers and shared memory
FULL = 256  # programs that keep a large GPU busy; fewer heads than that are cut along their queries


def attend_and_receive(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, D], bias [B, 1, 1, N] or None -> out [B, H, N, D], received [B, N], own [B, N]."""
    q = _side_by_side(q)
    k = _side_by_side(k)
    v = _side_by_side(v)
    batch, heads, n, width = q.shape
    if q.dtype == torch.float32 or n > WIDEST_TILE or width > WIDEST_HEAD:
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        received, own = receive(q, k, bias, lse=None, scale=scale)
        return out, received, own
    out = q.new_empty(batch, n, heads, width).transpose(1, 2)  # laid out as the projection after it reads it
    rows = 32
    keys = max(64, triton.next_power_of_2(n))
    cuts = 1 if batch * heads >= FULL else triton.cdiv(n, rows)
    sums = q.new_empty(batch, heads * cuts, n, dtype=torch.float32)
    own = q.new_empty(batch, heads, n, dtype=torch.float32)
    _attend_kernel[(batch * heads, cuts)](
        q, k, v, q if bias is None else bias, out, sums, own,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *_bias_strides(bias),
        heads, n, width, scale, triton.cdiv(triton.cdiv(n, rows), cuts) * rows,
        BIASED=bias is not None, M=rows, N=keys, D=_padded_width(width), UPCAST=_upcast(q),
        num_warps=8 if keys == WIDEST_TILE else 4, maxnreg=128,
    )  # fmt: skip
    return out, sums.sum(1), own.sum(1)


def receive(q: Tensor, k: Tensor, bias: Tensor | None, lse: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """q, k [B, H, N, D], bias [B, 1, 1, N] or None, lse [B, H, N] or None -> received [B, N], own [B, N]."""
    q = _side_by_side(q)
    k = _side_by_side(k)
    batch, heads, n, width = q.shape
    tile = 64 if q.dtype != torch.float32 else 32
    common = (*q.stride()[:3], *k.stride()[:3], *_bias_strides(bias), heads, n, width, scale)
    how = {"BIASED": bias is not None, "D": _padded_width(width), "UPCAST": _upcast(q)}
    how |= {"M": tile, "N": tile, "num_warps": 4 if tile == 64 else 8}
    grid = (triton.cdiv(n, tile), batch * heads)
    weight = q if bias is None else bias
    if lse is None:
        lse = q.new_empty(batch, heads, n, dtype=torch.float32)
        _log_sum_exp_kernel[grid](q, k, weight, lse, *common, **how)
    sums, own = (q.new_empty(batch, heads, n, dtype=torch.float32) for _ in range(2))
    _column_sums_kernel[grid](q, k, weight, lse.contiguous(), sums, own, *common, **how)
    return sums.sum(1), own.sum(1)


def _side_by_side(x: Tensor) -> Tensor:
    """x with the D numbers of a token next to each other in memory, as every kernel reads them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bias_strides(bias: Tensor | None) -> tuple[int, int]:
    return (0, 0) if bias is None else (bias.stride(0), bias.stride(3))


def _padded_width(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _upcast(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret


@triton.jit
def _tile(base, row, column, row_stride, rows, columns, UPCAST: tl.constexpr):
    """[rows, columns] numbers from base, 0 beyond the ends; columns lie side by side."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    values = tl.load(base + row[:, None] * row_stride + column[None, :], mask=inside, other=0.0)
    return values.to(tl.float32) if UPCAST else values


@triton.jit
def _key_bias(bias, key, stride, n, BIASED: tl.constexpr):
    """What is added to the base-2 scores of each key: [N], minus infinity beyond the last."""
    if BIASED:
        value = tl.load(bias + key * stride, mask=key < n, other=float("-inf")).to(tl.float32)
        return value * 1.4426950408889634
    return tl.where(key < n, 0.0, float("-inf"))


@triton.jit
def _attend_kernel(
    q, k, v, bias, out, sums, own,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, bias_b, bias_n,
    heads, n, width, scale, queries,
    BIASED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One head of one image: `queries` of its rows, all keys. The sums are the head's part in the mean over heads."""
    head = tl.program_id(0)
    cut = tl.program_id(1)
    image = (head // heads).to(tl.int64)
    h = head % heads
    q += image * q_b + h * q_h
    k += image * k_b + h * k_h
    v += image * v_b + h * v_h
    out += image * o_b + h * o_h
    bias += image * bias_b
    key = tl.arange(0, N)
    channel = tl.arange(0, D)
    keys = _tile(k, key, channel, k_n, n, width, UPCAST)
    values = _tile(v, key, channel, v_n, n, width, UPCAST)
    extra = _key_bias(bias, key, bias_n, n, BIASED)
    to_base_2 = scale * 1.4426950408889634
    received = tl.zeros([N], tl.float32)
    for first in range(cut * queries, tl.minimum((cut + 1) * queries, n), M):
        row = first + tl.arange(0, M)
        query = _tile(q, row, channel, q_n, n, width, UPCAST)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * to_base_2 + extra[None, :]
        highest = tl.max(score, 1)
        weight = tl.exp2(score - highest[:, None])
        share = 1.0 / tl.sum(weight, 1)
        attention = tl.where(row[:, None] < n, weight * share[:, None], 0.0)
        received += tl.sum(attention, 0)
        result = tl.dot(attention.to(values.dtype), values, input_precision="ieee")
        inside = (row[:, None] < n) & (channel[None, :] < width)
        tl.store(out + row[:, None] * o_n + channel[None, :], result.to(out.dtype.element_ty), mask=inside)
        # The diagonal from the rows themselves: M x D operations instead of M x N.
        same = _tile(k, row, channel, k_n, n, width, UPCAST)
        diagonal = tl.sum(query.to(tl.float32) * same.to(tl.float32), 1) * to_base_2
        diagonal = tl.exp2(diagonal + _key_bias(bias, row, bias_n, n, BIASED) - highest) * share
        tl.store(own + head.to(tl.int64) * n + row, diagonal / heads, mask=row < n)
    tl.store(sums + (head.to(tl.int64) * tl.num_programs(1) + cut) * n + key, received / heads, mask=key < n)


@triton.jit
def _log_sum_exp_kernel(
    q, k, bias, lse,
    q_b, q_h, q_n, k_b, k_h, k_n, bias_b, bias_n, heads, n, width, scale,
    BIASED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of M rows of one head."""
    head = tl.program_id(1)
    image = (head // heads).to(tl.int64)
    h = head % heads
    row = tl.program_id(0) * M + tl.arange(0, M)
    channel = tl.arange(0, D)
    k += image * k_b + h * k_h
    query = _tile(q + image * q_b + h * q_h, row, channel, q_n, n, width, UPCAST)
    highest = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for first in range(0, n, N):
        key = first + tl.arange(0, N)
        keys = _tile(k, key, channel, k_n, n, width, UPCAST)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * 1.4426950408889634)
        score += _key_bias(bias + image * bias_b, key, bias_n, n, BIASED)[None, :]
        above = tl.maximum(highest, tl.max(score, 1))
        # Rows that met only hidden keys so far: subtract 0, not minus infinity from itself.
        level = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp2(highest - level) + tl.sum(tl.exp2(score - level[:, None]), 1)
        highest = above
    tl.store(lse + head.to(tl.int64) * n + row, (highest + tl.log2(total)) / 1.4426950408889634, mask=row < n)


@triton.jit
def _column_sums_kernel(
    q, k, bias, lse, sums, own,
    q_b, q_h, q_n, k_b, k_h, k_n, bias_b, bias_n, heads, n, width, scale,
    BIASED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What N keys receive from all queries of a head, and pay to themselves: its part in the mean over heads."""
    head = tl.program_id(1)
    image = (head // heads).to(tl.int64)
    h = head % heads
    key = tl.program_id(0) * N + tl.arange(0, N)
    channel = tl.arange(0, D)
    q += image * q_b + h * q_h
    lse += head.to(tl.int64) * n
    keys = _tile(k + image * k_b + h * k_h, key, channel, k_n, n, width, UPCAST)
    extra = _key_bias(bias + image * bias_b, key, bias_n, n, BIASED)
    to_base_2 = scale * 1.4426950408889634
    received = tl.zeros([N], tl.float32)
    for first in range(0, n, M):
        row = first + tl.arange(0, M)
        query = _tile(q, row, channel, q_n, n, width, UPCAST)
        level = tl.load(lse + row, mask=row < n, other=float("inf")) * 1.4426950408889634
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * to_base_2 + extra[None, :]
        received += tl.sum(tl.exp2(score - level[:, None]), 0)
    tl.store(sums + head.to(tl.int64) * n + key, received / heads, mask=key < n)
    same = _tile(q, key, channel, q_n, n, width, UPCAST)
    diagonal = tl.sum(same.to(tl.float32) * keys.to(tl.float32), 1) * to_base_2 + extra
    level = tl.load(lse + key, mask=key < n, other=float("inf")) * 1.4426950408889634
    tl.store(own + head.to(tl.int64) * n + key, tl.exp2(diagonal - level) / heads, mask=key < n)
