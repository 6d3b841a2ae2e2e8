"""Tokens sampled by inverse transform (ATS): the native twin of `kernels.sampling`.

Shapes: B sets, N tokens, K samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels import sampling
from tpbench.kernels.native.engine import Types, array, compiled, over_sets


def nearest_samples(rising: Tensor, k: int) -> Tensor:
    """Places [B, K] that k samples take in the sorted scores rising [B, N]."""
    batch, n = rising.shape
    place = torch.empty(batch, k, dtype=torch.int64, device="cpu")
    total = array(rising.cumsum(dim=1), rising.dtype)  # by PyTorch, which may add with more digits
    spacing = array(sampling.spacing(k, rising), rising.dtype)
    over_sets(sample_sets, 0, batch, n, total, spacing, place.numpy())
    return place


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {sample_sets: (given.table, given.line, given.index)}


@compiled
def _scaled(total, share):
    """Sums scaled to run from 0 to 1; returns the smallest that is not 0, or NaN where one is."""
    lowest = total[0]
    start = total.dtype.type(np.inf)
    span = total[len(total) - 1] - lowest
    for i in range(len(total)):
        share[i] = (total[i] - lowest) / span
    for value in share:
        if value != value:
            return value
        if value != 0 and value < start:
            start = value
    return start


@compiled
def sample_sets(begin, end, base, totals, spacing, place):  # noqa: ARG001
    """The first nearest sum of every sample, all samples at once for every token.

    If one sum is NaN, so are the start and every sample; the first token is taken, as in the definition.
    """
    n = totals.shape[1]
    k = place.shape[1]
    one = totals.dtype.type(1)
    share = np.empty(n, totals.dtype)
    sample = np.empty(k, totals.dtype)
    best = np.empty(k, totals.dtype)
    label = np.empty(k, np.int32)
    for b in range(begin, end):
        start = _scaled(totals[b], share)
        for s in range(k):
            sample[s] = start + (one - start) * spacing[s]
            best[s] = abs(sample[s] - share[0])
            label[s] = 0
        for i in range(1, n):
            value = share[i]
            number = np.int32(i)
            for s in range(k):
                apart = abs(sample[s] - value)
                least = best[s]
                nearer = apart < least
                best[s] = apart if nearer else least
                label[s] = number if nearer else label[s]
        place[b] = label
    return True
