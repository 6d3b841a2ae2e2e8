"""ToMe (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461): merge the most similar pairs of tokens.

Tokens are split alternately into sets A and B, the class token counted, as published; every token of A finds its most
similar one in B by the cosine of their head-averaged keys, and the r best pairs merge into their size-weighted mean.
Later attention counts a key as often as the patches it stands for. Written from the paper's description.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.errors import Unreachable
from tpbench.registry import register
from tpbench.tokens import Tokens


def pairs(similarity: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best partner of every token of A: token [A], partner [B, A] (both counted over all tokens), score [B, A].

    similarity [B, A, B'] between even and odd tokens; the prefix takes part in the split, and never merges.
    """
    even, odd = (torch.arange(start, sum(similarity.shape[1:]), 2, device=similarity.device) for start in (0, 1))
    barred = (even < prefix)[:, None] | (odd < prefix)[None, :]
    score, best = similarity.masked_fill(barred, float("-inf")).max(dim=2)
    return even, odd[best], score


def merged(tokens: Tokens, token: Tensor, partner: Tensor, k: int) -> Tokens:
    """Each of token [B, R] merged into its partner [B, R] (body indices); k clusters are left."""
    batch, n = tokens.size.shape
    stays = torch.ones(batch, n, dtype=torch.bool, device=token.device).scatter_(1, token, False)
    number = stays.cumsum(dim=1) - 1
    return tokens.merge(number.scatter(1, token, number.gather(1, partner)), k)


@register(
    "tome",
    title="Token Merging (ToMe)",
    paper="Token Merging: Your ViT But Faster",
    venue="ICLR",
    year=2023,
    url="https://arxiv.org/abs/2210.09461",
    differs="r follows from the schedule, at its blocks; at most the body tokens of A can go in one block",
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
        metric = F.normalize(probe.keys.mean(dim=1), dim=-1)
        token, partner, score = pairs(metric[:, ::2] @ metric[:, 1::2].transpose(1, 2), tokens.prefix)
        chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, : tokens.count - self.setup.k]
        return merged(tokens, token[chosen] - tokens.prefix, partner.gather(1, chosen) - tokens.prefix, self.setup.k)

    def macs(self) -> int:
        n = self.setup.prefix + self.setup.tokens
        return (n - n // 2) * (n // 2) * (self.setup.width // self.setup.heads)
