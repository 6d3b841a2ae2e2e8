"""Clusters among the tokens of each image: every step in plain PyTorch, and the operators that run all of them.

Shapes: B sets, N tokens, K clusters, C width. The functions here are the definition of every step. Two modules have
functions of the same names and signatures. `native.clustering` takes over on a CPU where numba is installed, with
results equal to the last bit. `clustering_triton` takes over on CUDA devices that Triton compiles for, up to 1,024
tokens and float32. Everything else runs the definitions. `kmedoids` and `kmeans` are operators, so that compilers and
counters see one call: N^2 multiply-adds for each of the C channels and each of the iterations, executed or not.
Choosing the start counts as nothing, like sorting. On a CPU a few sets at a time go through all steps, so that their
distances stay in the cache.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tpbench.kernels.device import native_runs_on, triton_runs_on
from tpbench.kernels.operators import operator
from tpbench.tokens import rows, segment_sum, stable_topk

CACHE_PAIRS = 2**18  # distances at a time on a CPU: 1 MiB of float32, and as much again for the weighted ones
FUSED_TOKENS = 1024  # the longest sets that the fused twins take


# ---------------------------------------------------------------- the operators


@operator("kmedoids")
def kmedoids(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """x [B, N, C], weight and score [B, N], first [B, K] or None -> medoids [B, K], assignment [B, N].

    Without `first`, `start` names the step that chooses by score: topk, peaks or farthest.
    """
    native = native_module(x)
    if native is not None:
        return native.kmedoids(x, weight, score, first, start, k, iterations)
    steps = steps_for(x)

    def cluster(x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        distance = steps.squared_distances(x)
        first = _chosen(steps, start, distance, score, k) if first is None else first
        return steps.iterate_medoids(distance, weight.to(distance.dtype), first, iterations)

    return _in_chunks(cluster, x, weight, score, first)


@operator("kmeans")
def kmeans(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Arguments as for `kmedoids` -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    native = native_module(x)
    if native is not None:
        return native.kmeans(x, weight, score, first, start, k, iterations)
    steps = steps_for(x)

    def cluster(x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        products = steps.inner_products(x)
        if first is None:
            distance = None if start == "topk" else distances_from(products)
            first = _chosen(steps, start, distance, score, k)
        return steps.iterate_means(products, weight.to(products.dtype), first, iterations)

    return _in_chunks(cluster, x, weight, score, first)


@torch.library.register_fake("tpbench::kmedoids")
def _(x, weight, score, first, start, k, iterations):  # noqa: ARG001
    return x.new_empty(x.shape[0], k, dtype=torch.int64), x.new_empty(weight.shape, dtype=torch.int64)


@torch.library.register_fake("tpbench::kmeans")
def _(x, weight, score, first, start, k, iterations):  # noqa: ARG001
    exact = torch.promote_types(x.dtype, torch.float32)
    batch, n, _ = x.shape
    return x.new_empty(batch, k, n, dtype=exact), x.new_empty(weight.shape, dtype=torch.int64)


@register_flop_formula([torch.ops.tpbench.kmedoids, torch.ops.tpbench.kmeans])
def _clustering_flops(x, weight, score, first, start, k, iterations, *args, **kwargs) -> int:  # noqa: ARG001
    batch, n, width = x  # the counter passes shapes
    return 2 * batch * n * n * (width + iterations)


def steps_for(x: Tensor) -> ModuleType:
    """The module whose functions do the steps: the fused twins where they run, otherwise these definitions."""
    if not triton_runs_on(x.device) or x.dtype == torch.float64 or x.shape[1] > FUSED_TOKENS:
        return sys.modules[__name__]
    from tpbench.kernels import clustering_triton

    return clustering_triton


def native_module(x: Tensor) -> ModuleType | None:
    """The module that runs complete operators in compiled loops, where it is available."""
    if not native_runs_on(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32, "clustering"):
        return None
    return _native()


@cache  # an import statement takes as long as an operator, each time
def _native() -> ModuleType:
    from tpbench.kernels.native import clustering as native

    return native


def _chosen(steps: ModuleType, start: str, distance: Tensor | None, score: Tensor, k: int) -> Tensor:
    if start == "topk":
        return steps.heaviest(score, k)
    choose = {"peaks": steps.peaks, "farthest": steps.farthest}[start]
    return choose(distance, score.to(distance.dtype), k)


def _in_chunks(cluster, x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """cluster(x, weight, score, first) for a batch of sets: on a CPU few enough at a time to stay in its cache."""
    batch, n, _ = x.shape
    size = max(1, CACHE_PAIRS // (n * n)) if x.device.type == "cpu" else batch
    if size >= batch:
        return cluster(x, weight, score, first)
    parts = [slice(begin, begin + size) for begin in range(0, batch, size)]
    done = [cluster(x[p], weight[p], score[p], None if first is None else first[p]) for p in parts]
    left, right = zip(*done)
    return torch.cat(left), torch.cat(right)


# ---------------------------------------------------------------- distances


def inner_products(x: Tensor) -> Tensor:
    """Inner products of the tokens about their mean: [B, N, N] float32 (float64 for float64).

    Subtracting the mean removes most of the cancellation in |a|^2 + |b|^2 - 2ab. It is rounded to a 128th of the
    largest value's power of two, so that small integers stay exact and ties between them stay ties.
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    exact = exact - offset(exact)
    return torch.bmm(exact, exact.transpose(1, 2))


def offset(x: Tensor) -> Tensor:
    """The rounded mean of each set: x [B, N, C] -> [B, 1, C]."""
    largest = torch.maximum(x.amax(dim=(1, 2), keepdim=True), -x.amin(dim=(1, 2), keepdim=True))
    step = largest.clamp(min=torch.finfo(torch.float32).tiny).log2().ceil().exp2() / 128
    return (x.mean(1, keepdim=True) / step).round() * step


def squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2: [B, N, N] float32 (float64 for float64), symmetric to the last bit, 0 on the diagonal."""
    return distances_from(inner_products(x))


def distances_from(products: Tensor) -> Tensor:
    """Squared distances [B, N, N] from inner products [B, N, N] about any point."""
    half = products.diagonal(dim1=1, dim2=2)[:, :, None] - products
    return (half + half.transpose(1, 2)).relu()  # a matrix product need not be symmetric to the last bit; this sum is


# ---------------------------------------------------------------- starts


def heaviest(score: Tensor, k: int) -> Tensor:
    """Indices [B, K] of the k largest of score [B, N], largest first; see `tokens.stable_topk`."""
    return stable_topk(score, k)


def peaks(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """The k tokens that stand out among the heavier ones, in parallel: [B, K].

    Token i stands out by score_i times its least squared distance to a heavier token (of equal ones the lower index
    is heavier), the heaviest token by more than any other. One masked minimum over [B, N, N] and a top-K.
    """
    order = heaviest(score, score.shape[1])
    place = torch.arange(order.shape[1], device=order.device, dtype=distance.dtype).expand_as(order)
    rank = torch.empty_like(place).scatter_(1, order, place)
    # [B, i, j]: 0 where j is heavier than i. Added and not masked: three times faster on a CPU.
    lighter = torch.sub(rank[:, None, :] + 1, rank[:, :, None]).relu_()
    apart = torch.add(distance, lighter, alpha=torch.finfo(distance.dtype).max).amin(2)
    gain = score * apart
    return heaviest(gain.scatter_(1, order[:, :1], float("inf")), k)


def farthest(distance: Tensor, score: Tensor, k: int) -> Tensor:
    """Weighted farthest-first traversal, one token after the other: [B, K].

    The first is the heaviest token. The next is always the token not yet taken with the largest score_i times its least
    squared distance to those taken; ties go to the lower index.
    """
    chosen = heaviest(score, 1)
    taken = torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen, True)
    nearest = rows(distance, chosen)[:, 0]
    picks = [chosen]
    for _ in range(k - 1):
        chosen = (score * nearest).masked_fill_(taken, float("-inf")).max(1, keepdim=True).indices
        taken.scatter_(1, chosen, True)
        nearest = torch.minimum(nearest, rows(distance, chosen)[:, 0])
        picks.append(chosen)
    return torch.cat(picks, dim=1)


# ---------------------------------------------------------------- K-Medoids


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    medoids = first.clone()
    weighted = distance * weight[:, :, None]  # [B, j, i]: what member j costs candidate i
    for _ in range(iterations):
        assignment = _nearest_medoid(distance, medoids)
        cost = _cost_in_cluster(weighted, assignment, medoids.shape[1])
        moved = _cheapest_member(cost, assignment, medoids)
        if _same(moved, medoids):
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


def _same(now: Tensor, before: Tensor) -> bool:
    """Whether nothing changed. Checked on a CPU only: other devices would have to synchronise."""
    return now.device.type == "cpu" and torch.equal(now, before)


# ---------------------------------------------------------------- K-Means


def iterate_means(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    batch, n, _ = products.shape
    k = first.shape[1]
    share = products.new_zeros(batch, k, n).scatter_(2, first[:, :, None], 1)
    inner = rows(products, first)  # [B, K, N]: c_k . x_i
    norm = inner.gather(2, first[:, :, None])  # [B, K, 1]: |c_k|^2
    assignment = _nearest_mean(norm, inner)
    for _ in range(iterations):
        total = _total_weights(weight, assignment, k)
        part = weight / total.gather(1, assignment)
        heavy = (total > 0)[:, :, None]
        moved = products.new_zeros(batch, k, n).scatter_(1, assignment[:, None, :], part[:, None, :])
        share = torch.where(heavy, moved, share)
        inner = torch.where(heavy, _weighted_rows(products, part, assignment, moved), inner)
        norm = torch.where(heavy, _squared_lengths(share, inner, part, assignment), norm)
        before = assignment
        assignment = _nearest_mean(norm, inner)
        if _same(assignment, before):
            break
    return share, assignment


def _total_weights(weight: Tensor, assignment: Tensor, k: int) -> Tensor:
    """The weight of every cluster: [B, K]."""
    if weight.device.type != "cpu":  # adding by index has no fixed order there
        belongs = assignment[:, None, :] == torch.arange(k, device=weight.device)[:, None]
        return torch.where(belongs, weight[:, None, :], 0).sum(2)
    return segment_sum(weight, assignment, k)


def _squared_lengths(share: Tensor, inner: Tensor, part: Tensor, assignment: Tensor) -> Tensor:
    """|c_k|^2 = sum_i share_ki c_k . x_i: [B, K, 1]. On a CPU over the members alone, in the order of the tokens."""
    if inner.device.type != "cpu":  # adding by index has no fixed order there
        return (share * inner).sum(2, keepdim=True)
    own = inner.gather(1, assignment[:, None, :])[:, 0]  # [B, N]
    return segment_sum(part * own, assignment, inner.shape[1])[:, :, None]


def _nearest_mean(norm: Tensor, inner: Tensor) -> Tensor:
    return torch.sub(norm, inner, alpha=2).min(1).indices


def _weighted_rows(products: Tensor, part: Tensor, assignment: Tensor, share: Tensor) -> Tensor:
    """share @ products, from the one non-zero share of every token: [B, K, N]."""
    batch, k, n = share.shape
    if products.device.type != "cpu":  # adding rows by index has no fixed order there
        return torch.bmm(share, products)
    flat = (assignment + torch.arange(batch)[:, None] * k).view(-1)
    weighted = (products * part[:, :, None]).view(batch * n, n)
    return products.new_zeros(batch * k, n).index_add_(0, flat, weighted).view(batch, k, n)
