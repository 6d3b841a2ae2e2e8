"""Sets of tokens on which two forms of one clustering are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sets(NamedTuple):
    """x [B, N, C], weight [B, N], k."""

    x: Tensor
    weight: Tensor
    k: int


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(b: int, n: int, c: int, k: int, seed: int = 0) -> Sets:
    """Seen through a slice, as the body tokens behind a class token are."""
    return Sets(torch.randn(b, n + 1, c, generator=generator(seed))[:, 1:] + 0.5, weights(b, n, seed), k)


def weights(b: int, n: int, seed: int) -> Tensor:
    return torch.rand(b, n, generator=generator(seed + 1)) + 0.01


def integers(b: int, n: int, c: int, k: int, seed: int = 0) -> Sets:
    """Duplicates and exact ties everywhere, in distances, weights and costs."""
    x = torch.randint(-2, 3, (b, n, c), generator=generator(seed)).float()
    return Sets(x, torch.randint(0, 3, (b, n), generator=generator(seed + 1)).float(), k)
