"""Tokens sampled by inverse transform (ATS).

Shapes: B images, N tokens, K samples. The functions here are the definition. On a CPU where numba is installed,
`nearest_samples` runs in compiled loops (`native.sampling`) with results equal to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpbench.kernels.device import native_runs_on
from tpbench.kernels.operators import operator, without_gradient


def nearest_samples(rising: Tensor, k: int) -> Tensor:
    """Places [B, K], in rising order, that k samples take in the sorted scores rising [B, N].

    The sums of the scores are scaled to run from 0 to 1. The samples are evenly spaced from the smallest positive sum
    to 1, and each takes the place whose sum is nearest, the first of equally near ones.
    """
    with without_gradient():
        if rising.device.type == "cpu" and rising.dtype in (torch.float32, torch.float64):
            return torch.ops.tpbench.nearest_samples(rising, k)
        return nearest_sums(rising, k)


def nearest_sums(rising: Tensor, k: int) -> Tensor:
    """The definition of `nearest_samples`."""
    total = rising.cumsum(dim=1)
    lowest = total[:, :1]
    highest = total[:, -1:]
    share = (total - lowest) / (highest - lowest)
    start = share.masked_fill(share == 0, float("inf")).amin(dim=1, keepdim=True)
    sample = start + (1 - start) * spacing(k, rising)
    return (sample[:, :, None] - share[:, None, :]).abs().argmin(dim=2)


def spacing(k: int, like: Tensor) -> Tensor:
    """K numbers evenly spaced from 0 to 1: [K] float32; a single one is 1."""
    return torch.linspace(1, 0, k, device=like.device).flip(0)


@operator("nearest_samples")
def _nearest_samples(rising: Tensor, k: int) -> Tensor:
    if not native_runs_on(rising.device, rising.dtype, "sampling"):
        return nearest_sums(rising, k)
    from tpbench.kernels.native import sampling

    return sampling.nearest_samples(rising, k)


@torch.library.register_fake("tpbench::nearest_samples")
def _(rising, k):
    return rising.new_empty(rising.shape[0], k, dtype=torch.int64)
