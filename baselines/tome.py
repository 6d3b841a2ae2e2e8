"""ToMe (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461): merge the most similar pairs of tokens.

Tokens are split alternately into sets A and B, the class token counted, as published. Every token of A finds its most
similar one in B by the cosine of their head-averaged keys, and the r best pairs merge into their size-weighted mean.
The tokens of A that stay come first, in their order, then B; the next block splits by that order. Later attention
counts a key as often as the patches it stands for. Written from the paper's description.
"""

import torch
from torch import Tensor

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.errors import Unreachable
from tpbench.kernels.matching import match_halves
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine


@register(
    "tome",
    title="Token Merging (ToMe)",
    family="merging",
    paper="Token Merging: Your ViT But Faster",
    venue="ICLR",
    year=2023,
    url="https://arxiv.org/abs/2210.09461",
    differs="r follows from the schedule, at its blocks; at most the body tokens of A can leave in one block; those of "
    "A that stay keep their order in models without a class token too, as in the paper's listing",
)
class ToMe(Downsampler):
    """Merges the N - K most similar pairs of tokens between two alternating sets."""

    needs = Needs.KEYS
    weighted_attention = True

    @classmethod
    def reachable(cls, tokens: int, k: int, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        """k, if at most half of the tokens must leave. Raises Unreachable for fewer."""
        least = tokens - tokens // 2
        if k < least:
            raise Unreachable(
                f"{cls.name} removes at most half of {tokens} tokens in one block, down to {least}; asked: {k}"
            )
        return super().reachable(tokens, k, grid)

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Merge the N - K best pairs into their size-weighted means."""
        metric = head_mean(probe.keys)
        similarity = cosine(metric[:, ::2], metric[:, 1::2])
        return tokens.merge(match_halves(similarity, tokens.prefix, self.setup.k), self.setup.k)

    def macs(self) -> int:
        """The cosines between A and B of head-averaged keys."""
        n = self.setup.prefix + self.setup.tokens
        return (n - n // 2) * (n // 2) * (self.setup.width // self.setup.heads)


def head_mean(keys: Tensor) -> Tensor:
    """keys [B, H, N, D] -> their mean over heads [B, N, D], in float32 or better."""
    return keys.mean(dim=1, dtype=torch.promote_types(keys.dtype, torch.float32))
