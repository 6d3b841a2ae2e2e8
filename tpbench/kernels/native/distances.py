"""Inner products and squared distances of tokens: the native twin of the distances in `kernels.clustering`.

Shapes: B sets, N tokens, C width.

bfloat16 tokens, on a machine that multiplies bfloat16 matrices natively, are rounded to bfloat16 after the mean is
subtracted; their products are summed in float32. Their distances then carry the rounding of 8 bits, as on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels import clustering
from tpbench.kernels.native.engine import (
    Buffer,
    Types,
    array,
    buffer,
    compiled,
    exactly,
    flat_array,
    over_sets,
    sets_at_a_time,
)

TILE = 16  # rows and columns of distances that are mirrored at a time
NEAR_POWER = 0.500005  # a mantissa this close above 0.5 may round to it in a logarithm


def inner_products(x: Tensor) -> Tensor:
    """Inner products of the tokens about their mean: [B, N, N] float32 (float64 for float64)."""
    exact = exactly(x)
    batch, n, width = x.shape
    products = exact.new_empty(batch, n, n)
    centred = exact.new_empty(batch, n, width)
    _multiply(_centre(exact, Buffer(centred, centred.numpy())), products, x.dtype)
    return products


def products_in_parts(x: Tensor) -> Iterator[tuple[int, int, np.ndarray]]:
    """The same for as many sets at a time as stay in the cache.

    x [B, N, C] -> the first set of a part, the one after its last, and their products [b, N, N] in memory that the next
    part, and the next call on this thread, writes to again.
    """
    exact = exactly(x)
    batch, n, width = x.shape
    size = min(batch, sets_at_a_time(n, width))
    if size == 0:
        return
    centred = buffer("centred", (size, n, width), exact.dtype)
    products = buffer("products", (size, n, n), exact.dtype)
    for begin in range(0, batch, size):
        part = exact if size == batch else exact[begin : begin + size]
        out = products.tensor if len(part) == size else products.tensor[: len(part)]
        _multiply(_centre(part, centred), out, x.dtype)
        yield begin, begin + len(part), products.array


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32 (float64 for float64), symmetric to the last bit, 0 on the diagonal."""
    return distances_from(inner_products(x))


def distances_from(products: Tensor) -> Tensor:
    """Squared distances [B, N, N] from inner products [B, N, N] about any point."""
    batch, n, _ = products.shape
    distance = products.new_empty(batch, n, n)
    over_sets(distance_sets, 0, batch, n, array(products, products.dtype), distance.numpy())
    return distance


def _centre(x: Tensor, out: Buffer) -> Tensor:
    """x [B, N, C] minus the rounded mean of each set: in `out`, or computed by the definition."""
    batch, n, _ = x.shape
    if batch == 0 or x.stride(2) != 1:
        return x - clustering.offset(x)  # PyTorch adds and multiplies in another order where channels lie apart
    numbers, set_stride, row_stride = flat_array(x)
    bits = numbers.view(np.int64 if x.dtype == torch.float64 else np.int32)
    mean = x.mean(1).numpy()  # by PyTorch, whose order of additions no loop repeats
    if over_sets(centre_sets, 0, batch, n, numbers, bits, set_stride, row_stride, mean, out.array):
        return out.tensor if len(out.tensor) == batch else out.tensor[:batch]
    return x - clustering.offset(x)


def _multiply(centred: Tensor, out: Tensor, given: torch.dtype) -> None:
    """Inner products [B, N, N] of centred tokens [B, N, C] that were given in a dtype."""
    if given != torch.bfloat16 or not multiplies_bfloat16():
        torch.bmm(centred, centred.transpose(1, 2), out=out)
        return
    rounded = centred.bfloat16().float()
    with _bfloat16_products():
        torch.bmm(rounded, rounded.transpose(1, 2), out=out)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16 matrix products."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Within the block, multiply float32 matrices as bfloat16 numbers, and sum in float32."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {
        centre_sets: (given.line, given.bits, given.size, given.size, given.table, given.cube),
        distance_sets: (given.cube, given.cube),
    }


@compiled
def _largest(bits, set_start, row_stride, n, width, scratch):
    """The largest size of a number of one set, by the bits: without the sign they are in the order of the numbers."""
    mask = np.iinfo(bits.dtype).max
    most = bits.dtype.type(0)
    for i in range(n):
        row = bits[set_start + i * row_stride :][:width]
        for c in range(width):
            most = max(most, bits.dtype.type(row[c] & bits.dtype.type(mask)))
    scratch.view(bits.dtype)[0] = most
    return scratch[0]


@compiled
def centre_sets(begin, end, base, x, bits, set_stride, row_stride, mean, centred):
    """x holds the numbers of all sets. False where one is not finite or the rounding of the mean is not certain."""
    _, n, width = centred.shape
    offset = np.empty(width, x.dtype)
    scratch = np.empty(1, x.dtype)
    for b in range(begin, end):
        largest = _largest(bits, b * set_stride, row_stride, n, width, scratch)
        if not math.isfinite(largest):
            return False
        mantissa, power = math.frexp(max(largest, x.dtype.type(1.1754943508222875e-38)))
        if mantissa == 0.5:
            power -= 1
        elif mantissa < NEAR_POWER:
            return False
        step = x.dtype.type(math.ldexp(1.0, power)) / x.dtype.type(128)
        for c in range(width):
            offset[c] = np.rint(mean[b - base, c] / step) * step
        for i in range(n):
            row = x[b * set_stride + i * row_stride :][:width]
            out = centred[b - base, i]
            for c in range(width):
                out[c] = row[c] - offset[c]
    return True


@compiled
def _distances(products, distance, norm, tile):
    """distance [N, N] may be products. Numbers below the diagonal are read through a tile laid on its side."""
    n = len(products)
    zero = products.dtype.type(0)
    for i in range(n):
        norm[i] = products[i, i]
    for top in range(0, n, TILE):
        for left in range(top, n, TILE):
            height = min(TILE, n - top)
            width = min(TILE, n - left)
            for j in range(width):
                row = products[left + j][top : top + height]
                length = norm[left + j]
                for i in range(height):
                    tile[i, j] = length - row[i]
            for i in range(height):
                row = products[top + i][left : left + width]
                length = norm[top + i]
                half = tile[i]
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


@compiled
def distance_sets(begin, end, base, products, distance):
    """Squared distances [n, n] from inner products, for the sets from `begin` to `end`."""
    norm = np.empty(products.shape[1], products.dtype)
    tile = np.empty((TILE, TILE), products.dtype)
    for b in range(begin, end):
        _distances(products[b - base], distance[b - base], norm, tile)
    return True
