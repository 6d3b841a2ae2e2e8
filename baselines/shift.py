"""Representation Shift (ICCV 2025): keep the tokens that a branch of the block moves farthest.

The importance of a token is the L2 distance between its representation before and after a branch of the block. It needs
no attention map, so that fused attention stays. The K tokens that moved farthest are kept, in their order.
"""

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens, stable_topk


@register(
    "shift",
    title="Top-K by representation shift",
    family="pruning",
    paper="Representation Shift: Unifying Token Compression with FlashAttention",
    venue="ICCV",
    year=2025,
    url="https://arxiv.org/abs/2508.00367",
    differs="the shift is that of the branch before the site: of the attention at mid, the recipes' default, and of "
    "the MLP, the paper's choice, at end (shift(site=end)); residual connections count as no shift",
)
class Shift(Downsampler):
    """Keeps the K tokens that the branch before the site has moved farthest."""

    needs = Needs.SHIFT

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep the K tokens of largest shift."""
        return tokens.keep(stable_topk(probe.shift, self.setup.k).sort(dim=1).values)
