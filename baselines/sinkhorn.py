"""Sinkhorn token pooling (Haurum et al., ICCVW 2023, https://arxiv.org/abs/2308.04657): optimal transport to K centres.

Tokens and K learned centres lie on the unit sphere. Three iterations in the log domain approximate the
entropy-regularised transport between uniform marginals. Every new token is the sum of the unit tokens, each weighted
by the share of its mass that the plan sends there: its length is about N / K, whatever the tokens' lengths were.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, spread


@register(
    "sinkhorn",
    title="Sinkhorn clustering",
    family="learned queries",
    paper="Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
    venue="ICCVW",
    year=2023,
    url="https://arxiv.org/abs/2308.04657",
    differs="reduces where the recipe says; centres are normalised in the graph, where the published code overwrites "
    "them with their unit vectors at every pass",
)
class Sinkhorn(Downsampler):
    """Replaces the tokens by K sums of unit tokens, weighted by the transport plan to K learned centres."""

    eps = 1.0
    iterations = 3

    def __init__(self, setup: Setup, config: Downsampler.Config | None = None):
        super().__init__(setup, config)
        self.centres = nn.Parameter(torch.randn(setup.k, setup.width))

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """K means by an optimal-transport plan between tokens and learned centres."""
        units = F.normalize(tokens.body, dim=-1)
        similarity = F.normalize(self.centres, dim=-1) @ units.transpose(1, 2)
        plan = similarity.float() / self.eps
        for _ in range(self.iterations):
            plan = plan.log_softmax(dim=2)  # every centre receives the same
            plan = plan.log_softmax(dim=1)  # every token gives the same: 1
        share = plan.exp().to(tokens.x.dtype)
        return tokens.with_body(share @ units, spread(tokens.size, share), share=share)

    def macs(self) -> int:
        """2 N K C: the scores of the tokens, and the means."""
        return 2 * self.setup.k * self.setup.tokens * self.setup.width
