"""Pairs of similar tokens that merge (ToMe, PiToMe), from similarities to the cluster of each token.

Shapes: B images, N body tokens, A and A' tokens of the two sides of a match, K clusters, P prefix tokens. The functions
here are the definition. On a CPU where numba is installed, both operators run in compiled loops (`native.matching`)
with equal results. The definitions change no tensor in place, because they are exported to ONNX in place of the
operators. Similarities carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpbench.kernels.device import native_runs_on
from tpbench.kernels.operators import operator

FLOATS = (torch.float32, torch.float64)


# ---------------------------------------------------------------- ToMe


def match_halves(similarity: Tensor, prefix: int, k: int) -> Tensor:
    """Merge every other token into the most similar of the rest, the best pairs first, until k are left.

    similarity [B, A, A'] between even and odd tokens, the prefix counted -> the cluster of every body token: [B, N].
    Clusters are numbered by the even tokens that stay, in order, then by the odd ones. Ties go to the lower index.
    """
    if similarity.device.type == "cpu" and similarity.dtype in FLOATS:
        return torch.ops.tpbench.match_halves(similarity, prefix, k)
    return halves_matched(similarity, prefix, k)


def halves_matched(similarity: Tensor, prefix: int, k: int) -> Tensor:
    """The definition of `match_halves`."""
    n = similarity.shape[1] + similarity.shape[2] - prefix
    token, partner, score = pairs(similarity, prefix)
    chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, : n - k]
    source = token[chosen] - prefix
    target = partner.gather(1, chosen) - prefix
    return numbered(source, target, n, set_order(prefix, n, similarity.device))


def pairs(similarity: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best partner of every token of A: token [A], partner [B, A] (both counted over all tokens), score [B, A].

    similarity [B, A, A'] between even and odd tokens. Prefix tokens take part in the split and never merge.
    """
    n = similarity.shape[1] + similarity.shape[2]
    even = torch.arange(0, n, 2, device=similarity.device)
    odd = torch.arange(1, n, 2, device=similarity.device)
    barred = (even < prefix)[:, None] | (odd < prefix)[None, :]
    score, best = similarity.masked_fill(barred, float("-inf")).max(dim=2)
    return even, odd[best], score


def set_order(prefix: int, n: int, device: torch.device) -> Tensor:
    """The n body tokens in the order of set A, then set B: indices [N]."""
    position = torch.arange(n, device=device)
    in_b = (position + prefix) % 2
    return torch.argsort(in_b, stable=True)


def numbered(token: Tensor, partner: Tensor, n: int, order: Tensor | None = None) -> Tensor:
    """Clusters [B, N] of n tokens when each of token [B, R] joins its partner [B, R].

    They are numbered in the order [N] of their targets, by default that of their positions.
    """
    stays = torch.ones(token.shape[0], n, dtype=torch.bool, device=token.device).scatter(1, token, False)
    if order is None:
        order = torch.arange(n, device=token.device)
    place = stays[:, order].cumsum(dim=1) - 1
    number = place[:, torch.argsort(order)]
    return number.scatter(1, token, number.gather(1, partner))


@operator("match_halves")
def _match_halves(similarity: Tensor, prefix: int, k: int) -> Tensor:
    if not native_runs_on(similarity.device, similarity.dtype, "matching"):
        return halves_matched(similarity, prefix, k)
    from tpbench.kernels.native import matching

    return matching.match_halves(similarity, prefix, k)


@torch.library.register_fake("tpbench::match_halves")
def _(similarity, prefix, k):  # noqa: ARG001
    batch, even, odd = similarity.shape
    return similarity.new_empty(batch, even + odd - prefix, dtype=torch.int64)


# ---------------------------------------------------------------- PiToMe


def match_by_energy(similarity: Tensor, energy: Tensor, among: int, k: int) -> Tensor:
    """Merge pairs among the tokens of highest energy, the most similar first, until k are left.

    similarity [B, N, N], energy [B, N] -> the cluster of every token: [B, N]. Of the `among` tokens of highest energy,
    every second one is a possible target. Clusters are numbered by position. Ties go to the higher energy.
    """
    if similarity.device.type == "cpu" and similarity.dtype in FLOATS:
        return torch.ops.tpbench.match_by_energy(similarity, energy, among, k)
    return matched_by_energy(similarity, energy, among, k)


def matched_by_energy(similarity: Tensor, energy: Tensor, among: int, k: int) -> Tensor:
    """The definition of `match_by_energy`."""
    n = energy.shape[1]
    order = torch.argsort(energy, dim=1, descending=True, stable=True)[:, :among]
    first = order[:, ::2]
    second = order[:, 1::2]
    block = similarity.gather(1, first[:, :, None].expand(-1, -1, n))
    score, best = block.gather(2, second[:, None, :].expand(-1, first.shape[1], -1)).max(dim=2)
    chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, : n - k]
    source = first.gather(1, chosen)
    target = second.gather(1, best.gather(1, chosen))
    return numbered(source, target, n)


@operator("match_by_energy")
def _match_by_energy(similarity: Tensor, energy: Tensor, among: int, k: int) -> Tensor:
    if not native_runs_on(similarity.device, similarity.dtype, "matching"):
        return matched_by_energy(similarity, energy, among, k)
    from tpbench.kernels.native import matching

    return matching.match_by_energy(similarity, energy, among, k)


@torch.library.register_fake("tpbench::match_by_energy")
def _(similarity, energy, among, k):  # noqa: ARG001
    return similarity.new_empty(energy.shape, dtype=torch.int64)
