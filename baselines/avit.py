"""A-ViT (Yin et al., CVPR 2022, https://arxiv.org/abs/2112.07658): every token decides when to halt.

A token's first feature is its halting score; scores add up over the reducing blocks, and a token whose sum reaches 0.99
is hidden from then on. As in the published code, nothing is removed from the tensors: the row of the table shows how
many tokens live, and that no time is saved. The last tokens of an image may all reach 0.99 at once; the one with the
lowest sum then stays, since average pooling, and attention without a class token, need at least one token.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from tpbench.downsampler import Downsampler, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


def last_token(tokens: Tokens, halting: Tensor) -> Tensor:
    """[B, N] true for the living token of each image that has the lowest sum of halting scores [B, N]."""
    if tokens.alive is not None:
        halting = halting.masked_fill(tokens.alive == 0, float("inf"))
    index = torch.arange(tokens.count, device=halting.device)
    return index == halting.argmin(dim=1, keepdim=True)


@register(
    "avit",
    title="A-ViT, masks only: saves nothing",
    family="pruning",
    paper="A-ViT: Adaptive Tokens for Efficient Vision Transformer",
    venue="CVPR",
    year=2022,
    url="https://arxiv.org/abs/2112.07658",
    count="masked",
    differs="halts at the schedule's blocks, where a loss draws the living tokens to K and not to a Gaussian over "
    "depth; no mean over depth; ponder is the sum over blocks of the mass left, not blocks plus remainder, so that "
    "every block has a gradient; an image keeps its last token; scale and shift are the paper's, where its recipe "
    "takes 10 and 30 (DeiT-Ti) or 75 (DeiT-S)",
)
class AViT(Downsampler):
    """Hides the tokens whose halting scores have added up to `halt`; none is removed."""

    masks = True

    @dataclass(frozen=True)
    class Config:
        """The settings of AViT."""

        scale: float = 5.0  # gamma, as in the paper; in its recipe 10
        shift: float = 10.0  # minus beta, as in the paper; in its recipe 30 for DeiT-Ti and 75 for DeiT-S
        halt: Annotated[float, Interval(ge=0, le=1)] = 0.99
        ponder_weight: Annotated[float, Ge(0)] = 5e-4
        rate_weight: Annotated[float, Ge(0)] = 2.0

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """Hide the tokens whose halting scores have added up; none is removed."""
        before = tokens.carry.get("halting", torch.zeros_like(tokens.size))
        halting = before + torch.sigmoid(self.config.scale * tokens.body[..., 0].float() - self.config.shift)
        left = (1 - halting).clamp(min=0)
        going = (halting < self.config.halt) | last_token(tokens, halting)
        alive = going.float() + (left - left.detach())  # 0 or 1, with a gradient
        carry = {**tokens.carry, "halting": halting}
        return replace(tokens, alive=alive, grid=None, carry=carry, aux=self.losses(tokens, alive, left))

    def losses(self, tokens: Tokens, alive: Tensor, left: Tensor) -> dict[str, Tensor]:
        """The loss terms so far with this block's: the cost of the living tokens, and their distance from K."""
        off = (alive.mean(dim=1) - self.setup.k / self.setup.patches).square().mean() / self.setup.stages
        ponder = tokens.aux.get("ponder", 0) + self.config.ponder_weight * left.mean()
        return {
            **tokens.aux,
            "ponder": ponder,
            "keep_rate": tokens.aux.get("keep_rate", 0) + self.config.rate_weight * off,
        }
