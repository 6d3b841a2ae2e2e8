"""PatchMerger (Renggli et al., 2022, https://arxiv.org/abs/2202.12015): K learned queries gather all tokens."""

import torch
from torch import nn

from tpbench.downsampler import Downsampler, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, spread


@register(
    "patchmerger",
    title="PatchMerger",
    family="learned queries",
    paper="Learning to Merge Tokens in Vision Transformers",
    venue="arXiv",
    year=2022,
    url="https://arxiv.org/abs/2202.12015",
    differs="reduces where the recipe says, between attention and MLP by default",
)
class PatchMerger(Downsampler):
    """Replaces the tokens by K mixtures of them, one for each learned query."""

    def __init__(self, setup: Setup, config: Downsampler.Config | None = None):
        super().__init__(setup, config)
        self.norm = nn.LayerNorm(setup.width)
        self.queries = nn.Parameter(torch.randn(setup.k, setup.width))  # standard deviation 1, as published

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """K weighted means of all tokens, with learned weights."""
        x = self.norm(tokens.body)
        share = (self.queries @ x.transpose(1, 2)).softmax(dim=-1)  # no 1/sqrt(C), as published
        return tokens.with_body(share @ x, spread(tokens.size, share), share=share)

    def macs(self) -> int:
        """2 N K C: the scores of the tokens, and the means."""
        return 2 * self.setup.k * self.setup.tokens * self.setup.width
