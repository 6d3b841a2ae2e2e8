"""SiT (Zong et al., ECCV 2022, https://arxiv.org/abs/2111.11733): a network weighs the tokens in each new one."""

import torch
from torch import nn

from tpbench.downsampler import Downsampler, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, spread


@register(
    "sit",
    title="Self-slimmed ViT's token slimming module",
    family="learned queries",
    paper="Self-slimmed Vision Transformer",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2111.11733",
    differs="the slimming module alone, without the paper's feature recalibration distillation",
)
class SiT(Downsampler):
    """Replaces the tokens by K mixtures of them, with weights from a small network."""

    def __init__(self, setup: Setup, config: Downsampler.Config | None = None):
        super().__init__(setup, config)
        c = setup.width
        self.score = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c // 2), nn.GELU(), nn.Linear(c // 2, setup.k))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """K weighted means of all tokens, with weights that two layers give."""
        share = (self.score(tokens.body) * self.scale).transpose(1, 2).softmax(dim=-1)
        return tokens.with_body(share @ tokens.body, spread(tokens.size, share), share=share)

    def macs(self) -> int:
        """Those of the two layers, and N K C of the means."""
        n = self.setup.tokens
        c = self.setup.width
        k = self.setup.k
        return n * (c * (c // 2) + (c // 2) * k) + k * n * c
