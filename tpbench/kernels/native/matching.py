"""Pairs of similar tokens that merge (ToMe, PiToMe): the native twins of `kernels.matching`.

Shapes: B sets, N body tokens, A and A' tokens of the two sides of a match, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tpbench.kernels.native.engine import Types, array, compiled, over_sets


def match_halves(similarity: Tensor, prefix: int, k: int) -> Tensor:
    """similarity [B, A, A'] between even and odd tokens, the prefix counted -> clusters [B, N]."""
    batch, even, odd = similarity.shape
    assignment = torch.empty(batch, even + odd - prefix, dtype=torch.int64, device="cpu")
    numbers = array(similarity, similarity.dtype)
    over_sets(halves_sets, 0, batch, even + odd, numbers, prefix, k, assignment.numpy())
    return assignment


def match_by_energy(similarity: Tensor, energy: Tensor, among: int, k: int) -> Tensor:
    """similarity [B, N, N], energy [B, N] -> clusters [B, N]."""
    batch, n = energy.shape
    if min(among, n) < 2:
        raise IndexError(f"there are no pairs among {min(among, n)} of {n} tokens")
    assignment = torch.empty(batch, n, dtype=torch.int64, device="cpu")
    order = torch.argsort(energy, dim=1, descending=True, stable=True)
    numbers = array(similarity, similarity.dtype)
    indices = array(order, torch.int64)
    over_sets(energy_sets, 0, batch, n, numbers, indices, min(among, n), k, assignment.numpy())
    return assignment


# ---------------------------------------------------------------- compiled loops


def kernels(given: Types) -> dict[Callable[..., bool], tuple]:
    """The loops to compile, with the types of their arguments after (begin, end, base)."""
    return {
        halves_sets: (given.cube, given.size, given.size, given.index),
        energy_sets: (given.cube, given.index, given.size, given.size, given.index),
    }


@compiled
def _ranks(score, rank):
    """How many scores come before each: larger, or as large with a lower index; NaN is larger than numbers."""
    for i in range(len(score)):
        own = score[i]
        before = np.int32(0)
        for j in range(len(score)):
            other = score[j]
            larger = (other > own) | ((other != other) & (own == own))
            alike = (other == own) | ((other != other) & (own != own))
            before += np.int32(larger | (alike & (j < i)))
        rank[i] = before


@compiled
def _join(source, target, assignment):
    """Every source that is not -1 takes the cluster of its target."""
    for i in range(len(source)):
        if source[i] >= 0:
            assignment[source[i]] = assignment[target[i]]


@compiled
def _best_partners(similarity, prefix, best, score):
    """The first most similar odd token of every even one, NaN before all numbers; prefix tokens have none."""
    even, odd = similarity.shape
    begin = prefix // 2  # odd tokens before it belong to the prefix
    for i in range(even):
        choice = begin
        most = similarity.dtype.type(-np.inf)
        if 2 * i >= prefix:
            row = similarity[i]
            for j in range(begin, odd):
                if row[j] > most or row[j] != row[j]:
                    choice = j
                    most = row[j]
                if most != most:
                    break
        best[i] = choice
        score[i] = most


@compiled
def halves_sets(begin, end, base, similarity, prefix, k, assignment):  # noqa: ARG001
    """`match_halves` for the sets from `begin` to `end`."""
    _, even, odd = similarity.shape
    n = even + odd - prefix
    best = np.empty(even, np.int64)
    score = np.empty(even, similarity.dtype)
    rank = np.empty(even, np.int32)
    source = np.empty(even, np.int64)
    target = np.empty(even, np.int64)
    for b in range(begin, end):
        _best_partners(similarity[b], prefix, best, score)
        _ranks(score, rank)
        for i in range(even):
            goes = rank[i] < n - k and 2 * i >= prefix
            source[i] = 2 * i - prefix if goes else -1
            target[i] = 2 * best[i] + 1 - prefix
        number = 0
        for i in range(even):
            if source[i] < 0 and 2 * i >= prefix:
                assignment[b, 2 * i - prefix] = number
                number += 1
        for j in range(prefix // 2, odd):
            assignment[b, 2 * j + 1 - prefix] = number
            number += 1
        _join(source, target, assignment[b])
    return True


@compiled
def energy_sets(begin, end, base, similarity, order, among, k, assignment):  # noqa: ARG001
    """`match_by_energy` for the sets from `begin` to `end`."""
    n = order.shape[1]
    firsts = (among + 1) // 2
    seconds = among // 2
    score = np.empty(firsts, similarity.dtype)
    rank = np.empty(firsts, np.int32)
    source = np.empty(firsts, np.int64)
    target = np.empty(firsts, np.int64)
    for b in range(begin, end):
        for i in range(firsts):
            row = similarity[b, order[b, 2 * i]]
            choice = order[b, 1]
            most = row[order[b, 1]]
            for j in range(1, seconds):
                value = row[order[b, 2 * j + 1]]
                if most == most and (value > most or value != value):
                    choice = order[b, 2 * j + 1]
                    most = value
            target[i] = choice
            score[i] = most
        _ranks(score, rank)
        assignment[b] = 0
        for i in range(firsts):
            source[i] = order[b, 2 * i] if rank[i] < n - k else -1
            if source[i] >= 0:
                assignment[b, source[i]] = -1
        number = 0
        for i in range(n):
            if assignment[b, i] == 0:
                assignment[b, i] = number
                number += 1
        _join(source, target, assignment[b])
    return True
