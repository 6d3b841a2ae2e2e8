"""Clustering as the textbook has it, written plainly: what the benchmarks of `tox -e opbench` compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def looped_kmedoids(x: Tensor, weight: Tensor, k: int, iterations: int = 5) -> Tensor:
    """Weighted K-Medoids with a loop over images and clusters: x [B, N, C], weight [B, N] -> medoids [B, K]."""
    medoids = weight.topk(k, dim=1).indices
    for image in range(len(x)):
        distance = torch.cdist(x[image], x[image]).square()
        for _ in range(iterations):
            assignment = distance[medoids[image]].argmin(dim=0)
            for j in range(k):
                members = (assignment == j).nonzero()[:, 0]
                if len(members):
                    cost = (distance[members][:, members] * weight[image, members][:, None]).sum(dim=0)
                    medoids[image, j] = members[cost.argmin()]
    return medoids


def textbook_kmeans(x: Tensor, weight: Tensor, k: int, iterations: int = 5) -> tuple[Tensor, Tensor]:
    """Weighted K-Means, batched, with K distances of width C to every token in every iteration.

    x [B, N, C], weight [B, N] -> centres [B, K, C], assignment [B, N].
    """
    batch, _, width = x.shape
    first = weight.topk(k, dim=1).indices
    centres = x.gather(1, first[:, :, None].expand(batch, k, width))
    for _ in range(iterations):
        assignment = torch.cdist(x, centres).argmin(dim=2)
        total = torch.zeros(batch, k).scatter_add_(1, assignment, weight)[:, :, None]
        sums = torch.zeros_like(centres).scatter_add_(1, assignment[:, :, None].expand(x.shape), x * weight[:, :, None])
        centres = torch.where(total > 0, sums / total, centres)
    return centres, torch.cdist(x, centres).argmin(dim=2)
