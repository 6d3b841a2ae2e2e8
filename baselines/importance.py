"""Importance sampling: K tokens drawn without replacement, in proportion to the attention each receives.

A baseline of Token Pooling (Marin et al., WACV 2023, https://arxiv.org/abs/2110.03860).
"""

import torch

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "importance",
    title="Importance sampling by attention received",
    family="pruning",
    paper="Token Pooling in Vision Transformers for Image Classification (baseline)",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2110.03860",
    differs="the paper's exact rule is not published; drawn without replacement in proportion to attention received",
)
class Importance(Downsampler):
    """Keeps K tokens drawn at random, in proportion to the attention that they receive."""

    needs = Needs.RECEIVED

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Draw K tokens without replacement, in proportion to the attention they receive."""
        # The K largest of log p + Gumbel noise are a draw without replacement with probabilities p.
        uniform = torch.rand_like(probe.received).clamp_(min=torch.finfo(torch.float32).tiny)
        noise = -(-uniform.log()).clamp_(min=torch.finfo(torch.float32).tiny).log()
        index = (probe.received.log() + noise).topk(self.setup.k, dim=1).indices
        return tokens.keep(index.sort(dim=1).values)
