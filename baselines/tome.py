"""ToMe (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461): merge the most similar pairs of tokens.

Tokens are split alternately into sets A and B, the class token counted, as published. Every token of A finds its most
similar one in B by the cosine of their head-averaged keys, and the r best pairs merge into their size-weighted mean.
What stays of A comes out first, in its order, then B: the next block splits by that order. Later attention counts a
key as often as the patches it stands for. Written from the paper's description.
"""

import torch
from torch import Tensor

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.errors import Unreachable
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine


def pairs(similarity: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best partner of every token of A: token [A], partner [B, A] (both counted over all tokens), score [B, A].

    similarity [B, A, B'] between even and odd tokens. Prefix tokens take part in the split and never merge.
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


def merged(tokens: Tokens, token: Tensor, partner: Tensor, k: int, order: Tensor | None = None) -> Tokens:
    """Merge each of token [B, R] into its partner [B, R] (body indices), so that k clusters are left.

    The clusters come out in the order [N] of their targets, by default that of their positions.
    """
    batch, n = tokens.size.shape
    stays = torch.ones(batch, n, dtype=torch.bool, device=token.device).scatter_(1, token, False)
    if order is None:
        order = torch.arange(n, device=token.device)
    place = stays[:, order].cumsum(dim=1) - 1
    number = place[:, torch.argsort(order)]
    assignment = number.scatter(1, token, number.gather(1, partner))
    return tokens.merge(assignment, k)


@register(
    "tome",
    title="Token Merging (ToMe)",
    paper="Token Merging: Your ViT But Faster",
    venue="ICLR",
    year=2023,
    url="https://arxiv.org/abs/2210.09461",
    differs="r follows from the schedule, at its blocks; at most the body tokens of A can go in one block; what stays "
    "of A keeps its order in models without a class token too, as in the paper's listing",
)
class ToMe(Downsampler):
    needs = Needs.KEYS
    weighted_attention = True

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        least = tokens - tokens // 2
        if k < least:
            raise Unreachable(
                f"{cls.name} merges at most half of {tokens} tokens in one block, down to {least}; asked: {k}"
            )
        return super().reachable(tokens, k, grid)

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        metric = head_mean(probe.keys)
        token, partner, score = pairs(cosine(metric[:, ::2], metric[:, 1::2]), tokens.prefix)
        r = tokens.count - self.setup.k
        chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, :r]
        source = token[chosen] - tokens.prefix
        target = partner.gather(1, chosen) - tokens.prefix
        order = set_order(tokens.prefix, tokens.count, tokens.x.device)
        return merged(tokens, source, target, self.setup.k, order)

    def macs(self) -> int:
        n = self.setup.prefix + self.setup.tokens
        return (n - n // 2) * (n // 2) * (self.setup.width // self.setup.heads)


def head_mean(keys: Tensor) -> Tensor:
    """keys [B, H, N, D] -> their mean over heads [B, N, D], in float32 or better."""
    return keys.mean(dim=1, dtype=torch.promote_types(keys.dtype, torch.float32))
