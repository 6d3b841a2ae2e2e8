"""Every native twin: what is compiled before the first of them runs."""

from __future__ import annotations

import torch

from tpbench.kernels.native import distances, iterations, starts
from tpbench.kernels.native.engine import compile_kernels

ROOMS = (distances, starts, iterations)


def prepare(exact: torch.dtype) -> None:
    """Compile every kernel for float32 or float64, or load it from numba's cache.

    Raises RuntimeError or OSError where the cache cannot be written, and RuntimeError where numba is switched off.
    """
    for room in ROOMS:
        compile_kernels(exact, room.kernels)
