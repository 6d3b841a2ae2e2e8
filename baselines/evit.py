"""EViT (Liang et al., ICLR 2022, https://arxiv.org/abs/2202.07800): keep the attended, fuse the rest.

The K - 1 tokens with the highest class attention stay, and one token more: the sum of the others weighted by their
class attention.
"""

import torch
from torch import Tensor

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens, rows, stable_topk


@register(
    "evit",
    title="EViT, with the fused token",
    family="pruning",
    paper="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    venue="ICLR",
    year=2022,
    url="https://arxiv.org/abs/2202.07800",
    differs="the fused token is one of the K, so that its cost is counted as the others' are",
)
class EViT(Downsampler):
    """Keeps the K - 1 tokens with the highest class attention and fuses the others into one."""

    needs = Needs.CLS

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep K - 1 tokens by class attention and fuse the others into one."""
        kept = stable_topk(probe.cls, self.setup.k - 1).sort(dim=1).values
        dropped = torch.ones_like(probe.cls).scatter(1, kept, 0)
        weight = (probe.cls * dropped).to(tokens.x.dtype)
        fused = torch.einsum("bn,bnc->bc", weight, tokens.body)[:, None]
        size = torch.cat([tokens.size.gather(1, kept), (tokens.size * dropped).sum(dim=1, keepdim=True)], dim=1)
        body = torch.cat([rows(tokens.body, kept), fused], dim=1)
        return tokens.with_body(body, size, assignment=self.assignment(kept, tokens) if tokens.followed else None)

    @staticmethod
    def assignment(kept: Tensor, tokens: Tokens) -> Tensor:
        """[B, N] the place of each kept token [B, K - 1]; the fused token's for all others."""
        fused = kept.shape[1]
        place = torch.arange(fused, device=kept.device).expand_as(kept)
        return torch.full_like(tokens.size, fused, dtype=torch.int64).scatter(1, kept, place)

    def macs(self) -> int:
        """N C: the fused token is a weighted sum over all tokens."""
        return self.setup.tokens * self.setup.width
