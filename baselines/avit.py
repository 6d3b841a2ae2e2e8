"""A-ViT (Yin et al., CVPR 2022, https://arxiv.org/abs/2112.07658): every token decides when to halt.

A token's first feature is its halting score; scores add up over the reducing blocks, and a token whose sum reaches 0.99
is hidden from then on. Nothing is removed from the tensors, as in the published code: the row says how many live, and
that they save nothing.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "avit",
    title="A-ViT, masks only: saves nothing",
    paper="A-ViT: Adaptive Tokens for Efficient Vision Transformer",
    venue="CVPR",
    year=2022,
    url="https://arxiv.org/abs/2112.07658",
    count="masked",
    differs="halts at the schedule's blocks, drawn to their K and not to a Gaussian over depth; no mean over depth",
)
class AViT(Downsampler):
    masks = True

    @dataclass(frozen=True)
    class Config:
        scale: float = 5.0  # gamma
        shift: float = 10.0  # beta
        halt: Annotated[float, Interval(ge=0, le=1)] = 0.99
        ponder_weight: Annotated[float, Ge(0)] = 5e-4
        rate_weight: Annotated[float, Ge(0)] = 2.0

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        before = tokens.carry.get("halting", torch.zeros_like(tokens.size))
        halting = before + torch.sigmoid(self.config.scale * tokens.body[..., 0].float() - self.config.shift)
        left = (1 - halting).clamp(min=0)
        alive = (halting < self.config.halt).float() + (left - left.detach())  # 0 or 1, with a gradient
        carry = {**tokens.carry, "halting": halting}
        return replace(tokens, alive=alive, grid=None, carry=carry, aux=self.losses(tokens, alive, left))

    def losses(self, tokens: Tokens, alive: Tensor, left: Tensor) -> dict[str, Tensor]:
        """What a living token costs, and how far the living are from the schedule's share."""
        off = (alive.mean(dim=1) - self.setup.k / self.setup.patches).square().mean() / self.setup.stages
        ponder = tokens.aux.get("ponder", 0) + self.config.ponder_weight * left.mean()
        return {
            **tokens.aux,
            "ponder": ponder,
            "keep_rate": tokens.aux.get("keep_rate", 0) + self.config.rate_weight * off,
        }
