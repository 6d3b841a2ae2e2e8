"""The iterations of K-Medoids and K-Means: the native twins of those in `kernels.clustering`.

Shapes: B sets, N tokens, K clusters. Distances are taken to be symmetric. Costs are summed within clusters only, over
members that a counting sort puts side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels.native.engine import Types, array, compiled, over_sets


def iterate_medoids(distance: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """distance [B, N, N], weight [B, N], first [B, K] -> medoids [B, K], assignment [B, N]."""
    medoids = first.clone(memory_format=torch.contiguous_format)
    assignment = first.new_empty(weight.shape)
    pairs = array(distance, distance.dtype)
    weight = array(weight, distance.dtype)
    run(medoids_sets, 0, *weight.shape, pairs, weight, iterations, medoids.numpy(), assignment.numpy())
    return medoids, assignment


def iterate_means(products: Tensor, weight: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """products [B, N, N], weight [B, N], first [B, K] -> share [B, K, N] (centres = share @ x), assignment [B, N]."""
    batch, n = weight.shape
    k = first.shape[1]
    share = products.new_empty(batch, k, n)
    assignment = first.new_empty(batch, n)
    chosen = first.contiguous().numpy()
    pairs = array(products, products.dtype)
    weight = array(weight, products.dtype)
    run(means_sets, 0, batch, n, pairs, weight, iterations, chosen, share.numpy(), assignment.numpy())
    return share, assignment


def run(kernel: Callable[..., bool], begin: int, end: int, n: int, *arguments: object) -> None:
    """`over_sets`. Raises IndexError where a token to start from is not among the N."""
    if not over_sets(kernel, begin, end, n, *arguments):
        raise IndexError(f"a token to start from is not among the {n} tokens")


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {
        medoids_sets: (given.cube, given.table, given.size, given.index, given.index),
        means_sets: (given.cube, given.table, given.size, given.index, given.cube, given.index),
    }


@compiled
def _inside(first, n):
    return first.min() >= 0 and first.max() < n


@compiled
def _nearest_medoid(distance, medoids, best, label):
    """The first nearest medoid of every token, NaN before all numbers; a medoid's own cluster is its own.

    Four medoids at a time, so that the results so far are read and written a quarter as often.
    """
    n = len(label)
    k = len(medoids)
    best[:] = distance[medoids[0]]
    label[:] = 0
    number = 1
    while number + 4 <= k:
        one = distance[medoids[number]]
        two = distance[medoids[number + 1]]
        three = distance[medoids[number + 2]]
        four = distance[medoids[number + 3]]
        first = np.int32(number)
        for i in range(n):
            least = best[i]
            which = label[i]
            nearer = _comes_before(one[i], least)
            least = one[i] if nearer else least
            which = first if nearer else which
            nearer = _comes_before(two[i], least)
            least = two[i] if nearer else least
            which = np.int32(first + 1) if nearer else which
            nearer = _comes_before(three[i], least)
            least = three[i] if nearer else least
            which = np.int32(first + 2) if nearer else which
            nearer = _comes_before(four[i], least)
            best[i] = four[i] if nearer else least
            label[i] = np.int32(first + 3) if nearer else which
        number += 4
    while number < k:
        row = distance[medoids[number]]
        first = np.int32(number)
        for i in range(n):
            least = best[i]
            nearer = _comes_before(row[i], least)
            best[i] = row[i] if nearer else least
            label[i] = first if nearer else label[i]
        number += 1
    for number in range(k):
        label[medoids[number]] = number


@compiled
def _comes_before(value, least):
    """As in PyTorch's minimum: NaN comes before every number, and the first NaN stays."""
    return (value < least) | ((value != value) & (least == least))


@compiled
def _gather_members(label, begins, members):
    """A counting sort. members [N]: the tokens of cluster c, in rising order, from begins[c] to begins[c + 1]."""
    begins[:] = 0
    for i in range(len(label)):
        begins[label[i] + 1] += 1
    for number in range(1, len(begins)):
        begins[number] += begins[number - 1]
    for i in range(len(label)):
        members[begins[label[i]]] = i
        begins[label[i]] += 1
    for number in range(len(begins) - 1, 0, -1):
        begins[number] = begins[number - 1]
    begins[0] = 0


@compiled
def _cheapest(distance, weight, members, medoid):
    """The member that costs its cluster least, ties to the lowest; where a cost is NaN, the medoid as it was."""
    chosen = medoid
    least = distance.dtype.type(0)
    for place in range(len(members)):
        row = distance[members[place]]
        cost = distance.dtype.type(0)
        for member in members:
            cost += weight[member] * row[member]
        if cost != cost:
            return medoid
        if place == 0 or cost < least:
            chosen = members[place]
            least = cost
    return chosen


@compiled
def _move_medoids(distance, weight, begins, members, medoids):
    """Every medoid moves to the cheapest member of its cluster; whether any moved."""
    moved = False
    for number in range(len(medoids)):
        mine = members[begins[number] : begins[number + 1]]
        if len(mine) > 0:
            chosen = _cheapest(distance, weight, mine, medoids[number])
            moved |= chosen != medoids[number]
            medoids[number] = chosen
    return moved


@compiled
def medoids_sets(begin, end, base, pairs, weight, iterations, medoids, assignment):
    """pairs: distances of the sets from base on; medoids: where to start. False where such a token does not exist."""
    n = weight.shape[1]
    k = medoids.shape[1]
    best = np.empty(n, pairs.dtype)
    label = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    for b in range(begin, end):
        distance = pairs[b - base]
        if not _inside(medoids[b], n):
            return False
        _nearest_medoid(distance, medoids[b], best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            if not _move_medoids(distance, weight[b], begins, members, medoids[b]):
                break
            _nearest_medoid(distance, medoids[b], best, label)
        assignment[b] = label
    return True


@compiled
def _nearest_mean(norm, inner, best, label):
    """The first nearest centre of every token by |c|^2 - 2 c.x, NaN before all numbers."""
    for number in range(len(norm)):
        row = inner[number]
        length = norm[number]
        name = np.int32(number)
        for i in range(len(label)):
            least = best[i]
            apart = length - (row[i] + row[i])
            nearer = _comes_before(apart, least) | (name == 0)
            best[i] = apart if nearer else least
            label[i] = name if nearer else label[i]


@compiled
def _move_mean(products, weight, members, share, inner, norm):
    """One centre moves to the weighted mean of its members; without weight it stays. Returns its squared length."""
    total = weight.dtype.type(0)
    for member in members:
        total += weight[member]
    if not total > 0:
        return norm
    share[:] = 0
    inner[:] = 0
    for member in members:
        part = weight[member] / total
        row = products[member]
        share[member] = part
        for i in range(len(inner)):
            inner[i] += row[i] * part
    norm = weight.dtype.type(0)
    for member in members:
        norm += share[member] * inner[member]
    return norm


@compiled
def _begin_means(products, first, share, inner, norm):
    """Every centre at its first token."""
    share[:] = 0
    for number in range(len(first)):
        token = first[number]
        share[number, token] = 1
        inner[number] = products[token]
        norm[number] = products[token, token]


@compiled
def means_sets(begin, end, base, pairs, weight, iterations, chosen, share, assignment):
    """pairs: products of the sets from base on. False where a token to start from does not exist."""
    n = weight.shape[1]
    k = chosen.shape[1]
    inner = np.empty((k, n), pairs.dtype)  # c_k . x_i and |c_k|^2
    norm = np.empty(k, pairs.dtype)
    best = np.empty(n, pairs.dtype)
    label = np.empty(n, np.int32)
    before = np.empty(n, np.int32)
    members = np.empty(n, np.int64)
    begins = np.empty(k + 1, np.int64)
    for b in range(begin, end):
        dots = pairs[b - base]
        if not _inside(chosen[b], n):
            return False
        _begin_means(dots, chosen[b], share[b], inner, norm)
        _nearest_mean(norm, inner, best, label)
        for _ in range(iterations):
            _gather_members(label, begins, members)
            for number in range(k):
                mine = members[begins[number] : begins[number + 1]]
                norm[number] = _move_mean(dots, weight[b], mine, share[b, number], inner[number], norm[number])
            before[:] = label
            _nearest_mean(norm, inner, best, label)
            if np.array_equal(before, label):
                break
        assignment[b] = label
    return True
