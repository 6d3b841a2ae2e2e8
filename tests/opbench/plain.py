"""Plain textbook clustering, with which the benchmarks of `tox -e opbench` compare."""

from __future__ import annotations

import torch
from torch import Tensor

from tpbench.tokens import Tokens, cosine


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
    """Weighted K-Means, batched, with the distances of all tokens to K centres in every iteration.

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


def exchanged(x: Tensor, weight: Tensor, medoids: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange a medoid for another token, always by the best of all exchanges, until none lowers the loss.

    This is the swap phase of PAM (Kaufman and Rousseeuw, 1990), in float64. Its local optimum is a lower bound in
    practice: no start with any number of iterations gets far below it.
    x [B, N, C], weight [B, N], medoids [B, K] -> medoids [B, K], assignment [B, N].
    """
    distance = torch.cdist(x.double(), x.double()).square()
    weight = weight.double()
    medoids = medoids.clone()
    batch, n = weight.shape
    k = medoids.shape[1]
    image = torch.arange(batch)
    while True:
        near = distance.gather(2, medoids[:, None, :].expand(batch, n, k))  # [B, N, K]
        two = near.topk(2, dim=2, largest=False)
        own = two.indices[:, :, :1] == torch.arange(k)
        without = torch.where(own, two.values[:, :, 1:], two.values[:, :, :1])  # [B, N, K]: with medoid k left out
        trials = [(weight[:, :, None] * torch.minimum(without, distance[:, :, h, None])).sum(1) for h in range(n)]
        loss, place = torch.stack(trials, dim=1).flatten(1).min(1)  # over token N, medoid K
        better = loss < (weight * two.values[:, :, 0]).sum(1) * (1 - 1e-12)
        if not better.any():
            return medoids, two.indices[:, :, 0]
        token = place // k
        replaced = place % k
        medoids[image[better], replaced[better]] = token[better]


def one_by_one(tokens: Tokens, keys: Tensor, k: int, linkage: str) -> Tokens:
    """ATC's layer with scikit-learn, image by image: keys [B, H, N, D] of the body tokens -> K merged tokens."""
    from sklearn.cluster import AgglomerativeClustering

    features = keys.mean(dim=1)
    distances = (1 - cosine(features, features)).numpy()
    clustering = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage)
    assignment = torch.stack([torch.from_numpy(clustering.fit_predict(distance)) for distance in distances])
    return tokens.merge(assignment, k)
