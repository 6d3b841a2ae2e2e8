"""dTPS (Wei et al., CVPR 2023, https://arxiv.org/abs/2304.10716): DynamicViT whose pruned tokens are squeezed.

Predictor, decisions and losses are DynamicViT's. Every token that is pruned goes to the most similar one that stays, as
in eTPS. In training nothing is removed: the tokens that a stage decides to drop are squeezed into those that it keeps,
with a gradient to the decisions, and are hidden from then on.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.dynamicvit import DynamicViT
from baselines.etps import HOST, squeeze
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine


@register(
    "dtps",
    title="dTPS, DynamicViT with squeezing",
    family="merging",
    paper="Joint Token Pruning and Squeezing Towards More Aggressive Compression of Vision Transformers",
    venue="CVPR",
    year=2023,
    url="https://arxiv.org/abs/2304.10716",
    differs="as dynamicvit and etps: reduces where the recipe says; no gradient through the similarities",
)
class DTPS(DynamicViT):
    """DynamicViT whose pruned tokens are squeezed into those that stay."""

    def prune(self, tokens: Tokens, score: Tensor) -> Tokens:
        """At inference: keep the K tokens of highest score and squeeze the others into them."""
        return squeeze(tokens, score, self.setup.k)

    def before_masking(self, tokens: Tokens, alive: Tensor, kept: Tensor) -> Tokens:
        """In training: squeeze the tokens that are alive [B, N] but not kept [B, N] into the kept ones."""
        similarity = cosine(tokens.body, tokens.body).masked_fill((kept == 0)[:, None, :], float("-inf"))
        score, host = similarity.max(dim=2)
        leaves = (alive - kept)[:, :, None] * F.one_hot(host, tokens.count)  # [B, from, to]
        weight = leaves * score.exp()[:, :, None]
        total = HOST + weight.sum(dim=1)
        guests = weight.transpose(1, 2).to(tokens.x.dtype) @ tokens.body
        body = (HOST * tokens.body + guests) / total[:, :, None].to(tokens.x.dtype)
        size = tokens.size + (leaves.detach() * tokens.size[:, :, None]).sum(dim=1)
        return replace(tokens, x=torch.cat([tokens.x[:, : tokens.prefix], body], dim=1), size=size)

    def macs(self) -> int:
        """Those of the predictor, and C for every pair of a token that leaves and one that stays."""
        return super().macs() + (self.setup.tokens - self.setup.k) * self.setup.k * self.setup.width
