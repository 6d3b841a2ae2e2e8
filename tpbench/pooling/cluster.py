"""Weighted K-Medoids and K-Means over batches of token sets, as pure functions.

Both minimise   sum_i w_i min_j |x_i - c_j|^2   (Marin et al., WACV 2023: the weighted K-Means objective, an
asymmetric Chamfer divergence from tokens to centres); K-Medoids keeps every c_j among the x_i.
Shapes: B sets, N tokens, K clusters, C width. Distances are squared, computed in float32 (float64 stays float64)
from a matrix product, once for the start and all iterations; everything else is batched index arithmetic, with no
loop over B or K and nothing larger than [B, N, N]. Ties go to the lowest token index, and between centres to the
first. The steps themselves, and what runs in their place on a GPU, are in `tpbench.kernels.clustering`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tpbench.kernels import clustering
from tpbench.kernels.clustering import squared_distances
from tpbench.kernels.operators import without_autocast, without_gradient
from tpbench.tokens import rows

__all__ = ["INITIALISATIONS", "Initialisation", "initial", "kmeans", "kmedoids", "objective", "squared_distances"]

Initialisation = Literal["topk", "peaks", "farthest", "grid", "random"]
INITIALISATIONS = get_args(Initialisation)


def kmedoids(
    x: Tensor,
    weight: Tensor,
    k: int,
    iterations: int = 5,
    init: Initialisation | Tensor = "topk",
    score: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted K-Medoids by alternation (Voronoi iteration).

    x [B, N, C], weight [B, N] >= 0 -> medoids [B, K] int64 (distinct token indices) and assignment [B, N] int64 in
    [0, K). One iteration assigns every token to its nearest medoid, then makes the member i of every cluster with the
    least sum_j w_j |x_i - x_j|^2 over the members j its medoid. The assignment returned belongs to the medoids
    returned; a medoid always belongs to its own cluster, so that no cluster is empty.
    init is a name (see `initial`) or token indices [B, K]; score [B, N] is that of `initial`, by default the weight.
    Raises ValueError for shapes that do not fit and for K outside 1..N. For tokens with NaN only the range of the
    indices is guaranteed.
    """
    _check(x, weight, k, init, score)
    with without_gradient(), without_autocast(x.device):
        score, first, start = _start(init, weight, k, score)
        return torch.ops.tpbench.kmedoids(x, weight, score, first, start, k, iterations)


def kmeans(
    x: Tensor,
    weight: Tensor,
    k: int,
    iterations: int = 5,
    init: Initialisation | Tensor = "topk",
    score: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted K-Means (Lloyd's iteration).

    x [B, N, C], weight [B, N] >= 0 -> centres [B, K, C] in x's dtype and assignment [B, N] int64 in [0, K). One
    iteration assigns every token to its nearest centre, then moves every centre to the weighted mean of its members;
    a cluster without weight keeps its centre. The assignment returned belongs to the centres returned, and gradients
    flow to x through the last weighted means. Arguments and errors as for `kmedoids`.

    A centre is a combination of tokens, c_k = sum_i a_ki x_i, so after one [N, N] matrix of inner products an
    iteration costs N^2 instead of N K C: the same iterates, from fewer operations.
    """
    _check(x, weight, k, init, score)
    with without_autocast(x.device):
        with without_gradient():
            score, first, start = _start(init, weight, k, score)
            share, assignment = torch.ops.tpbench.kmeans(x, weight, score, first, start, k, iterations)
        return torch.bmm(share, x.to(share.dtype)).to(x.dtype), assignment


def initial(name: Initialisation, score: Tensor, k: int, distance: Tensor | None = None) -> Tensor:
    """Token indices [B, K] to start from, by score [B, N]; peaks and farthest need the squared distances [B, N, N].

    topk: the K heaviest (the likely choice of Marin et al.); peaks: the K largest products of a token's score and
    its squared distance to the nearest heavier token; farthest: from the heaviest on, always the token with the
    largest product of its score and its squared distance to those taken; grid: evenly spaced in token order;
    random: K at random.
    """
    batch, n = score.shape
    if name == "topk":
        return clustering.heaviest(score, k)
    if name == "peaks":
        return clustering.peaks(distance, score.to(distance.dtype), k)
    if name == "farthest":
        return clustering.farthest(distance, score.to(distance.dtype), k)
    if name == "grid":
        return ((2 * torch.arange(k, device=score.device) + 1) * n // (2 * k)).expand(batch, k)
    if name == "random":
        return torch.rand(batch, n, device=score.device).argsort(dim=1)[:, :k]
    raise ValueError(f"unknown initialisation {name!r}; known: {', '.join(INITIALISATIONS)}")


def objective(x: Tensor, weight: Tensor, centres: Tensor, assignment: Tensor) -> Tensor:
    """sum_i w_i |x_i - c_a(i)|^2 per set: [B], for x [B, N, C], centres [B, K, C], assignment [B, N]."""
    exact = torch.promote_types(x.dtype, torch.float32)
    off = x.to(exact) - rows(centres.to(exact), assignment)
    return (weight.to(exact) * off.square().sum(-1)).sum(-1)


def _start(
    init: Initialisation | Tensor, weight: Tensor, k: int, score: Tensor | None
) -> tuple[Tensor, Tensor | None, str]:
    """The score, the tokens to start from (or None) and the name of the start, as the operators take them.

    Starts that depend on the score are left to the operators, which have the distances and fused code for them.
    """
    score = weight if score is None else score
    if isinstance(init, Tensor):
        return score, init, "given"
    by_score = init in ("topk", "peaks", "farthest")
    return score, None if by_score else initial(init, score, k), init


def _check(x: Tensor, weight: Tensor, k: int, init: str | Tensor, score: Tensor | None) -> None:
    score = weight if score is None else score
    if x.dim() != 3 or not x.shape[:2] == weight.shape == score.shape:
        shapes = [list(tensor.shape) for tensor in (x, weight, score)]
        raise ValueError(f"x must be [B, N, C], weight and score [B, N]; got {', '.join(map(str, shapes))}")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k must be between 1 and the {x.shape[1]} tokens; got {k}")
    if isinstance(init, Tensor) and init.shape != (x.shape[0], k):
        raise ValueError(f"init must be a name or token indices [B, K] = {[x.shape[0], k]}; got {list(init.shape)}")
