"""K random tokens for each image and block: the baseline that every method must beat."""

import torch

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register("random", title="Random tokens", family="trivial")
class Random(Downsampler):
    """Keeps K tokens drawn at random, each with the same probability."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """Keep K tokens at random."""
        draw = torch.rand(tokens.size.shape, device=tokens.x.device)
        return tokens.keep(draw.argsort(dim=1)[:, : self.setup.k].sort(dim=1).values)
