"""What all native twins share: compilation, threads and memory that is reused.

Sets are divided among as many threads as PyTorch computes on. They are plain Python threads that numba's code runs on
without the interpreter's lock: numba starts no threads of its own, and a process that computes on one thread, such as
the benchmark's workers, starts none at all. A forked process starts its own when it needs them.

Fresh memory for the distances of every call costs more than the loops over them, because the system hands out pages one
by one. `buffer` gives every thread the same memory again and again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

SET_NUMBERS = 2**20  # tokens and distances, in numbers, that go through all steps together on one thread
THREAD_PAIRS = 2**16  # distances that are worth another thread

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


# ---------------------------------------------------------------- compiling


class Types(NamedTuple):
    """numba's types of what kernels take, for float32 or float64 numbers."""

    real: types.Type
    size: types.Type
    truth: types.Type
    line: types.Type  # [N] of numbers
    bits: types.Type  # [N], numbers as integers of their size
    table: types.Type  # [B, N] of numbers
    cube: types.Type  # [B, N, N] of numbers
    index: types.Type  # [B, K] of indices


def compile_kernels(exact: torch.dtype, kernels: Callable[[Types], Mapping[Callable[..., bool], tuple]]) -> None:
    """Compile kernels for float32 or float64, or load them from numba's cache.

    Raises RuntimeError or OSError where the cache cannot be written, and RuntimeError where numba is switched off.
    """
    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is switched off by NUMBA_DISABLE_JIT")
    real = types.float64 if exact == torch.float64 else types.float32
    integer = types.int64 if exact == torch.float64 else types.int32
    given = Types(
        real=real,
        size=types.int64,
        truth=types.boolean,
        line=types.Array(real, 1, "C"),
        bits=types.Array(integer, 1, "C"),
        table=types.Array(real, 2, "C"),
        cube=types.Array(real, 3, "C"),
        index=types.Array(types.int64, 2, "C"),
    )
    for kernel, arguments in kernels(given).items():
        kernel.compile((types.int64, types.int64, types.int64, *arguments))


# ---------------------------------------------------------------- sets on several threads


def sets_at_a_time(n: int, width: int) -> int:
    """How many sets go through all steps together: as many as stay in a core's cache, for every thread."""
    return max(1, SET_NUMBERS // (n * (n + width))) * torch.get_num_threads()


def over_sets(kernel: Callable[..., bool], begin: int, end: int, n: int, *arguments: object) -> bool:
    """kernel(first, last, begin, *arguments) for parts of the sets from begin to end; whether all returned True."""
    count = end - begin
    if count == 1:
        return kernel(begin, end, begin, *arguments)
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
    return ThreadPoolExecutor(count, thread_name_prefix="tpbench-native")


# ---------------------------------------------------------------- memory


class Buffer(NamedTuple):
    """The same memory for PyTorch and for compiled loops."""

    tensor: Tensor
    array: np.ndarray


class _ThreadMemory(threading.local):
    """The memory that one thread uses again: one flat tensor by name and dtype, and views of it by shape."""

    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...], torch.dtype], Buffer] = {}


_memory = _ThreadMemory()


def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Buffer:
    """Uninitialised memory of a shape. The next call on this thread with the same name may return the same memory.

    Memory for more than SET_NUMBERS numbers a thread is fresh every time, so that little stays allocated.
    """
    found = _memory.views.get((name, shape, dtype))
    if found is not None:
        return found
    count = prod(shape)
    if count > SET_NUMBERS * torch.get_num_threads():
        return _buffer(torch.empty(shape, dtype=dtype, device="cpu"))
    flat = _memory.flat.get((name, dtype))
    with torch.inference_mode(mode=False):  # what is made in inference mode could not be written to outside it
        if flat is None or flat.numel() < count:
            _forget_views(name, dtype)
            flat = torch.empty(count, dtype=dtype, device="cpu")
            _memory.flat[name, dtype] = flat
        found = _buffer(flat[:count].view(shape))
    _memory.views[name, shape, dtype] = found
    return found


def _forget_views(name: str, dtype: torch.dtype) -> None:
    """Forget the views of a flat tensor that a larger one is about to replace."""
    for key in list(_memory.views):
        view_name, _, view_dtype = key
        if (view_name, view_dtype) == (name, dtype):
            del _memory.views[key]


def release() -> None:
    """Free the memory that this thread keeps."""
    _memory.flat.clear()
    _memory.views.clear()


def _buffer(tensor: Tensor) -> Buffer:
    return Buffer(tensor, tensor.numpy())


# ---------------------------------------------------------------- numbers


def exactly(x: Tensor) -> Tensor:
    """x without its gradient, in float32 or better."""
    if x.requires_grad:
        x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def array(x: Tensor, dtype: torch.dtype) -> np.ndarray:
    """x in a dtype and in one piece, for compiled loops."""
    if x.requires_grad:
        x = x.detach()
    return x.to(dtype).contiguous().numpy()


def flat_array(x: Tensor) -> tuple[np.ndarray, int, int]:
    """The numbers of x [B, N, C] as they lie in memory, and the steps from set to set and from token to token.

    Where channels are not contiguous, or there are no numbers, they are those of a copy.
    """
    if x.requires_grad:
        x = x.detach()
    if x.stride(2) != 1 or x.numel() == 0:
        x = x.contiguous()
    batch, n, width = x.shape
    set_stride, row_stride, _ = x.stride()
    span = (batch - 1) * set_stride + (n - 1) * row_stride + width
    return x.as_strided((max(0, span),), (1,)).numpy(), set_stride, row_stride
