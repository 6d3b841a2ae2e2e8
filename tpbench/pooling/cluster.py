"""Weighted K-Medoids and K-Means over batches of token sets, as pure functions.

Both minimise   sum_i w_i min_j |x_i - c_j|^2   (Marin et al., WACV 2023: the weighted K-Means objective, an
asymmetric Chamfer divergence from tokens to centres); K-Medoids keeps every c_j among the x_i.
Shapes: B sets, N tokens, K clusters, C width. Distances are squared, computed in float32 (float64 stays float64)
from a matrix product, so that counters see them; everything else is batched index arithmetic, with no loop over B
or K and nothing larger than [B, N, N]. Ties go to the lowest token index, and between centres to the first.
The iterations are custom operators with a FLOP formula: T N^2 multiply-adds for T iterations, executed or not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tpbench.downsampler import stable_topk
from tpbench.tokens import rows, segment_sum

INITIALISATIONS = ("topk", "grid", "random")


def kmedoids(
    x: Tensor, weight: Tensor, k: int, iterations: int = 5, init: str | Tensor = "topk"
) -> tuple[Tensor, Tensor]:
    """Weighted K-Medoids by alternation (Voronoi iteration).

    x [B, N, C], weight [B, N] >= 0 -> medoids [B, K] int64 (distinct token indices) and assignment [B, N] int64 in
    [0, K). One iteration assigns every token to its nearest medoid, then makes the member i of every cluster with the
    least sum_j w_j |x_i - x_j|^2 over the members j its medoid. The assignment returned belongs to the medoids
    returned; a medoid always belongs to its own cluster, so that no cluster is empty.
    init: a name (see `initial`) or token indices [B, K]. Raises ValueError for shapes that do not fit or K outside
    1..N. NaN tokens give indices in range and nothing else.
    """
    _check(x, weight, k, init)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        distance = squared_distances(x)
        first = init if isinstance(init, Tensor) else initial(init, weight, k)
        return torch.ops.tpbench.kmedoids_iterate(distance, weight.to(distance.dtype), first, iterations)


def kmeans(
    x: Tensor, weight: Tensor, k: int, iterations: int = 5, init: str | Tensor = "topk"
) -> tuple[Tensor, Tensor]:
    """Weighted K-Means (Lloyd's iteration).

    x [B, N, C], weight [B, N] >= 0 -> centres [B, K, C] in x's dtype and assignment [B, N] int64 in [0, K). One
    iteration assigns every token to its nearest centre, then moves every centre to the weighted mean of its members;
    a cluster without weight keeps its centre. The assignment returned belongs to the centres returned, and gradients
    flow to x through the last weighted means. Arguments and errors as for `kmedoids`.

    A centre is a combination of tokens, c_k = sum_i a_ki x_i, so after one [N, N] matrix of inner products an
    iteration costs N^2 instead of N K C: the same iterates, from fewer operations.
    """
    _check(x, weight, k, init)
    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            first = init if isinstance(init, Tensor) else initial(init, weight, k)
            products = inner_products(x)
            share, assignment = torch.ops.tpbench.kmeans_iterate(products, weight.to(products.dtype), first, iterations)
        return torch.bmm(share, x.to(share.dtype)).to(x.dtype), assignment


def initial(name: str, weight: Tensor, k: int) -> Tensor:
    """Token indices [B, K] to start from.

    topk: the K heaviest (the likely choice of Marin et al.); grid: evenly spaced in token order; random: K at random.
    """
    batch, n = weight.shape
    if name == "topk":
        return stable_topk(weight, k)
    if name == "grid":
        return ((2 * torch.arange(k, device=weight.device) + 1) * n // (2 * k)).expand(batch, k)
    if name == "random":
        return torch.rand(batch, n, device=weight.device).argsort(dim=1)[:, :k]
    raise ValueError(f"unknown initialisation {name!r}; known: {', '.join(INITIALISATIONS)}")


def objective(x: Tensor, weight: Tensor, centres: Tensor, assignment: Tensor) -> Tensor:
    """sum_i w_i |x_i - c_a(i)|^2 per set: [B], for x [B, N, C], centres [B, K, C], assignment [B, N]."""
    exact = torch.promote_types(x.dtype, torch.float32)
    off = x.to(exact) - rows(centres.to(exact), assignment)
    return (weight.to(exact) * off.square().sum(-1)).sum(-1)


def inner_products(x: Tensor) -> Tensor:
    """Inner products of the tokens about their mean: [B, N, N] float32 (float64 for float64).

    Taking the mean off removes most of the cancellation in |a|^2 + |b|^2 - 2ab. It is rounded to a 128th of the
    largest value's power of two, so that small integers stay exact and ties between them stay ties.
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = exact.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    step = largest.log2().ceil().exp2() / 128
    exact = exact - (exact.mean(1, keepdim=True) / step).round() * step
    return torch.bmm(exact, exact.transpose(1, 2))


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32 (float64 for float64), symmetric to the last bit, 0 on the diagonal."""
    products = inner_products(x)
    norm = products.diagonal(dim1=1, dim2=2)
    both_ways = products + products.transpose(1, 2)  # a matrix product need not be symmetric to the last bit
    return torch.sub(norm[:, :, None] + norm[:, None, :], both_ways, out=both_ways).clamp_(min=0)


@torch.library.custom_op("tpbench::kmedoids_iterate", mutates_args=())
def kmedoids_iterate(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    medoids = first.clone()
    weighted = distance * weight[:, :, None]  # [B, j, i]: what member j costs candidate i
    for _ in range(iterations):
        assignment = _nearest_medoid(distance, medoids)
        cost = _cost_in_cluster(weighted, assignment, medoids.shape[1])
        moved = _cheapest_member(cost, assignment, medoids)
        if distance.device.type == "cpu" and torch.equal(moved, medoids):  # elsewhere the question costs a wait
            break
        medoids = moved
    return medoids, _nearest_medoid(distance, medoids)


def _nearest_medoid(distance: Tensor, medoids: Tensor) -> Tensor:
    assignment = rows(distance, medoids).min(1).indices  # several times faster than argmin on a CPU, first wins a tie
    own = torch.arange(medoids.shape[1], device=medoids.device).expand_as(medoids)
    return assignment.scatter_(1, medoids, own)


def _cost_in_cluster(weighted: Tensor, assignment: Tensor, k: int) -> Tensor:
    """[B, N]: what each token would cost as the medoid of its own cluster."""
    batch, n, _ = weighted.shape
    if weighted.device.type != "cpu":  # adding rows by index has no fixed order there
        return weighted.masked_fill(assignment[:, :, None] != assignment[:, None, :], 0).sum(1)
    flat = (assignment + torch.arange(batch)[:, None] * k).view(-1)
    sums = weighted.new_zeros(batch * k, n).index_add_(0, flat, weighted.view(batch * n, n))
    return sums.view(batch, k, n).gather(1, assignment[:, None, :])[:, 0]


def _cheapest_member(cost: Tensor, assignment: Tensor, medoids: Tensor) -> Tensor:
    """The cheapest member of every cluster, ties to the lowest token index: [B, K]; NaN costs keep the medoid."""
    n = cost.shape[1]
    least = cost.new_full(medoids.shape, float("inf")).scatter_reduce_(1, assignment, cost, "amin")
    token = torch.arange(n, device=cost.device)
    candidate = torch.where(cost == least.gather(1, assignment), token, n)
    chosen = torch.full_like(medoids, n).scatter_reduce_(1, assignment, candidate, "amin")
    return torch.where(chosen < n, chosen, medoids)


@torch.library.custom_op("tpbench::kmeans_iterate", mutates_args=())
def kmeans_iterate(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    batch, n, _ = products.shape
    k = first.shape[1]
    share = products.new_zeros(batch, k, n).scatter_(2, first[:, :, None], 1)
    inner = rows(products, first)  # [B, K, N]: c_k . x_i
    norm = inner.gather(2, first[:, :, None])  # [B, K, 1]: |c_k|^2
    for _ in range(iterations):
        assignment = (norm - 2 * inner).min(1).indices
        total = segment_sum(weight, assignment, k)
        part = weight / total.gather(1, assignment)
        heavy = (total > 0)[:, :, None]
        moved = products.new_zeros(batch, k, n).scatter_(1, assignment[:, None, :], part[:, None, :])
        share = torch.where(heavy, moved, share)
        inner = torch.where(heavy, _weighted_rows(products, part, assignment, moved), inner)
        norm = (share * inner).sum(2, keepdim=True)
    return share, (norm - 2 * inner).min(1).indices


def _weighted_rows(products: Tensor, part: Tensor, assignment: Tensor, share: Tensor) -> Tensor:
    """share @ products, from the one non-zero share of every token: [B, K, N]."""
    batch, k, n = share.shape
    if products.device.type != "cpu":  # adding rows by index has no fixed order there
        return torch.bmm(share, products)
    flat = (assignment + torch.arange(batch)[:, None] * k).view(-1)
    weighted = (products * part[:, :, None]).view(batch * n, n)
    return products.new_zeros(batch * k, n).index_add_(0, flat, weighted).view(batch, k, n)


@kmedoids_iterate.register_fake
def _(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(first), first.new_empty(weight.shape)


@kmeans_iterate.register_fake
def _(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return products.new_empty(first.shape[0], first.shape[1], products.shape[2]), first.new_empty(weight.shape)


@register_flop_formula([torch.ops.tpbench.kmedoids_iterate, torch.ops.tpbench.kmeans_iterate])
def _iterate_flops(pairs: tuple[int, int, int], weight, first, iterations: int, *args, **kwargs) -> int:  # noqa: ARG001
    """One multiply-add for every ordered pair of tokens and iteration."""
    batch, n, _ = pairs
    return 2 * batch * iterations * n * n


def _check(x: Tensor, weight: Tensor, k: int, init: str | Tensor) -> None:
    if x.dim() != 3 or weight.shape != x.shape[:2]:
        raise ValueError(f"x must be [B, N, C] and weight [B, N]; got {list(x.shape)} and {list(weight.shape)}")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k must be between 1 and the {x.shape[1]} tokens; got {k}")
    if isinstance(init, Tensor) and init.shape != (x.shape[0], k):
        raise ValueError(f"init must be a name or token indices [B, K] = {[x.shape[0], k]}; got {list(init.shape)}")
