"""Agglomerative clustering of the tokens of each image: its definition in plain PyTorch, and the operator that runs it.

Shapes: B sets, N tokens, K clusters. Every token starts as a cluster of its own; the two nearest clusters merge until K
are left. The linkage says how far two clusters are apart: the least (single), the mean (average) or the largest
(complete) distance between their members. On a CPU where numba is installed, the operator runs in compiled loops
(`native.agglomerative`) with equal results; elsewhere the definition runs, one merge of every set at a time.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tpbench.kernels.device import native_runs_on
from tpbench.kernels.operators import operator

Linkage = Literal["single", "average", "complete"]
FARTHEST = torch.finfo(torch.float32).max  # what NaN and every larger distance count as


def agglomerate(distance: Tensor, k: int, linkage: str) -> Tensor:
    """distance [B, N, N], of which what is above the diagonal is read -> assignment [B, N] int64 in [0, K).

    Clusters are numbered in the order of their lowest members. Of pairs equally far apart, the one with the lowest
    member merges first, then the one whose other cluster has the lowest. Distances between clusters are float64.
    """
    return torch.ops.tpbench.agglomerate(distance, k, linkage)


@operator("agglomerate")
def _agglomerate(distance: Tensor, k: int, linkage: str) -> Tensor:
    exact = torch.promote_types(distance.dtype, torch.float32)
    if not native_runs_on(distance.device, exact, "agglomerative"):
        return merge_nearest(distance, k, linkage)
    from tpbench.kernels.native import agglomerative

    return agglomerative.agglomerate(distance.to(exact), k, linkage)


@torch.library.register_fake("tpbench::agglomerate")
def _(distance: Tensor, k: int, linkage: str) -> Tensor:  # noqa: ARG001
    return distance.new_empty(distance.shape[:2], dtype=torch.int64)


@register_flop_formula(torch.ops.tpbench.agglomerate)
def _agglomerate_flops(distance, k, linkage, *args, **kwargs) -> int:  # noqa: ARG001
    batch, n, _ = distance  # the counter passes shapes
    return 2 * batch * merge_macs(n, k, linkage)


def merge_macs(n: int, k: int, linkage: str) -> int:
    """Multiply-adds of n - k merges: two for each token where distances are averaged, else none, as for sorting."""
    return 2 * n * (n - k) if linkage == "average" else 0


def merge_nearest(distance: Tensor, k: int, linkage: str) -> Tensor:
    """The definition of `agglomerate`, without changing a tensor in place, so that it exports to ONNX as well.

    A cluster stands at the index of its lowest member; what is merged into it, and itself, are infinitely far from it.
    """
    batch, n, _ = distance.shape
    index = torch.arange(n, device=distance.device)
    between = _symmetric(distance)
    size = torch.ones(batch, n, dtype=between.dtype, device=distance.device)
    root = index.expand(batch, n)
    for _ in range(n - k):
        nearest = between.flatten(1).argmin(dim=1, keepdim=True)
        first = nearest // n
        second = nearest % n
        sizes = (size.gather(1, first), size.gather(1, second))
        stays = index == first
        leaves = index == second
        linked = _linked(_row(between, first), _row(between, second), *sizes, linkage)
        linked = torch.where(stays | leaves, torch.inf, linked)
        between = torch.where(stays[:, :, None], linked[:, None, :], between)
        between = torch.where(stays[:, None, :], linked[:, :, None], between)
        between = torch.where(leaves[:, :, None] | leaves[:, None, :], torch.inf, between)
        size = torch.where(stays, sum(sizes), size)
        root = torch.where(root == second, first, root)
    place = (root == index).long().cumsum(dim=1) - 1
    return place.gather(1, root)


def _symmetric(distance: Tensor) -> Tensor:
    """[B, N, N] float64: both halves from the upper one, the diagonal infinite."""
    index = torch.arange(distance.shape[1], device=distance.device)
    finite = torch.where(distance < FARTHEST, distance, FARTHEST).double()
    upper = torch.where(index[:, None] < index, finite, finite.transpose(1, 2))
    return torch.where(index[:, None] == index, torch.inf, upper)


def _row(between: Tensor, number: Tensor) -> Tensor:
    """Rows number [B, 1] of between [B, N, N]: [B, N]."""
    return between.gather(1, number[:, :, None].expand(-1, 1, between.shape[2]))[:, 0]


def _linked(first: Tensor, second: Tensor, size: Tensor, other: Tensor, linkage: str) -> Tensor:
    """How far the union of two clusters is from the others, from how far the two are and their sizes (Lance and
    Williams, 1967): first, second [B, N], size, other [B, 1] -> [B, N]."""
    if linkage == "single":
        return torch.minimum(first, second)
    if linkage == "complete":
        return torch.maximum(first, second)
    return (size * first + other * second) / (size + other)
