"""K random tokens per image and block: what any method must beat."""

import torch

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register("random", title="Random tokens")
class Random(Downsampler):
    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        draw = torch.rand(tokens.size.shape, device=tokens.x.device)
        return tokens.keep(draw.argsort(dim=1)[:, : self.setup.k].sort(dim=1).values)
