"""Sinkhorn token pooling (Haurum et al., ICCVW 2023, https://arxiv.org/abs/2308.04657): optimal transport to K centres.

Tokens and K learned centres on the unit sphere, entropy-regularised transport between uniform marginals by three
iterations in the log domain; every new token is the mean of the tokens under its row of the plan.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, spread


@register(
    "sinkhorn",
    title="Sinkhorn clustering",
    paper="Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
    venue="ICCVW",
    year=2023,
    url="https://arxiv.org/abs/2308.04657",
    differs="reduces where the recipe says",
)
class Sinkhorn(Downsampler):
    eps, iterations = 1.0, 3

    def __init__(self, setup: Setup, config: Downsampler.Config | None = None):
        super().__init__(setup, config)
        self.centres = nn.Parameter(torch.randn(setup.k, setup.width))

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        k, n = self.setup.k, tokens.count
        similarity = F.normalize(self.centres, dim=-1) @ F.normalize(tokens.body, dim=-1).transpose(1, 2)
        plan = similarity.float() / self.eps
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(dim=2, keepdim=True) - math.log(k)
            plan = plan - plan.logsumexp(dim=1, keepdim=True) - math.log(n)
        share = plan.softmax(dim=2).to(tokens.x.dtype)
        return tokens.with_body(share @ tokens.body, spread(tokens.size, share))

    def macs(self) -> int:
        return 2 * self.setup.k * self.setup.tokens * self.setup.width
