"""MCTF (Lee et al., CVPR 2024, https://arxiv.org/abs/2403.10030): merge what is alike, ignored and small.

Tokens are split alternately into sets A and B. A pair attracts by the product of three terms, each to a power of its
own: similarity, how little attention both receive, and how few patches both stand for. Half of the merges go from A to
B, the other half from B to those of A that are left. Merged tokens are means weighted by attention received and size.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from baselines.tome import ToMe
from tpbench.downsampler import Needs, Probe, Setup
from tpbench.kernels.matching import numbered
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine

Temperature = Annotated[float, Gt(0)]


@register(
    "mctf",
    title="Multi-criteria Token Fusion (MCTF)",
    family="merging",
    paper="Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
    venue="CVPR",
    year=2024,
    url="https://arxiv.org/abs/2403.10030",
    differs="merges after the attention, whose map gives the attention received; the paper merges before it and reuses "
    "the merged map; no consistency loss between two reductions; the class token is in neither set; the second "
    "direction uses the attractions of the first, at most half leave in one block",
)
class MCTF(ToMe):
    """Merges pairs by similarity, attention received and size, in both directions."""

    needs = Needs.RECEIVED

    @dataclass(frozen=True)
    class Config:
        """The settings of MCTF."""

        similarity: Temperature = 1.0
        information: Temperature = 20.0
        size: Temperature = 40.0
        proportional: bool = True  # later attention counts keys by their sizes

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.weighted_attention = self.config.proportional

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Merge N - K tokens into their partners: half of A into B, the others of B into A."""
        received = probe.received.detach().clamp(min=torch.finfo(torch.float32).tiny)
        attraction = self.attraction(tokens, received)
        r = tokens.count - self.setup.k
        sources, targets = match_both_ways(attraction, r)
        assignment = numbered(sources, targets, tokens.count)
        return tokens.merge(assignment, self.setup.k, weight=received * tokens.size)

    def attraction(self, tokens: Tokens, received: Tensor) -> Tensor:
        """How much the even body tokens and the odd ones attract each other: [B, A, B']."""
        similarity = (cosine(tokens.body[:, ::2], tokens.body[:, 1::2]).clamp(min=-1) + 1) / 2
        ignored = scale_to_one(1 / received)
        small = scale_to_one(1 / tokens.size)
        information = ignored[:, ::2, None] * ignored[:, None, 1::2]
        size = small[:, ::2, None] * small[:, None, 1::2]
        return (
            similarity ** (1 / self.config.similarity)
            * information ** (1 / self.config.information)
            * size ** (1 / self.config.size)
        )

    def macs(self) -> int:
        """The cosines between A and B."""
        n = self.setup.tokens
        return (n - n // 2) * (n // 2) * self.setup.width


def scale_to_one(x: Tensor) -> Tensor:
    """x [B, N] divided by its maximum in each image."""
    return x / x.amax(dim=1, keepdim=True)


def match_both_ways(attraction: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Choose r merges by attraction [B, A, B']: r - r // 2 of A into B, then r // 2 of B into what is left of A.

    Returns the body tokens that leave and the body tokens that they join, [B, r] each. If a token of A joins a token of
    B that leaves itself, it joins that token's target instead. Body tokens 0, 2, 4 ... are A; 1, 3, 5 ... are B.
    """
    from_a, into_b = strongest(attraction, r - r // 2)
    taken = torch.zeros_like(attraction[:, :, 0]).scatter(1, from_a, 1)
    left = attraction.masked_fill(taken[:, :, None] > 0, -1)
    from_b, into_a = strongest(left.transpose(1, 2), r // 2)
    in_b = torch.arange(attraction.shape[2], device=attraction.device).expand(attraction.shape[0], -1)
    end = (2 * in_b + 1).scatter(1, from_b, 2 * into_a)  # [B, B']: the body token in which each token of B ends
    sources = torch.cat([2 * from_a, 2 * from_b + 1], dim=1)
    targets = torch.cat([end.gather(1, into_b), 2 * into_a], dim=1)
    return sources, targets


def strongest(attraction: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r rows of attraction [B, A, B'] with the largest maximum, and the columns of these maxima: [B, r] each."""
    score, column = attraction.max(dim=2)
    chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, :r]
    return chosen, column.gather(1, chosen)
