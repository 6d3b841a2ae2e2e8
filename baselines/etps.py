"""eTPS (Wei et al., CVPR 2023, https://arxiv.org/abs/2304.10716): prune by class attention, squeeze what is pruned.

The K tokens with the highest class attention stay. Every other token goes to the most similar of them, its host, which
becomes a weighted mean of itself and its guests: a token weighs e to the power of its cosine to the host, the host
itself e.
"""

import math

import torch
from torch import Tensor

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, rows, stable_topk

HOST = math.e  # what a token that stays weighs in its own mean: its similarity to itself is 1


def squeeze(tokens: Tokens, score: Tensor, k: int) -> Tokens:
    """Keep the k tokens with the highest score [B, N], in their order, and squeeze each other one into its host."""
    order = stable_topk(score, tokens.count)
    kept = order[:, :k].sort(dim=1).values
    dropped = order[:, k:]
    similarity, host = cosine(rows(tokens.body, dropped), rows(tokens.body, kept)).max(dim=2)
    own = torch.arange(k, device=host.device).expand_as(kept)
    assignment = torch.empty_like(order).scatter(1, kept, own).scatter(1, dropped, host)
    weight = torch.full_like(tokens.size, HOST).scatter(1, dropped, similarity.exp().float())
    return tokens.merge(assignment, k, weight)


@register(
    "etps",
    title="eTPS, token pruning and squeezing",
    family="merging",
    paper="Joint Token Pruning and Squeezing Towards More Aggressive Compression of Vision Transformers",
    venue="CVPR",
    year=2023,
    url="https://arxiv.org/abs/2304.10716",
    differs="the weights of the mean are constants: no gradient through the similarities",
)
class ETPS(Downsampler):
    """Keeps the K tokens of highest class attention and squeezes the others into them."""

    needs = Needs.CLS

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep K tokens by class attention; the others join their hosts."""
        return squeeze(tokens, probe.cls, self.setup.k)

    def macs(self) -> int:
        """(N - K) K C: the cosines between dropped and kept tokens."""
        return (self.setup.tokens - self.setup.k) * self.setup.k * self.setup.width
