"""TokenLearner (Ryoo et al., NeurIPS 2021, https://arxiv.org/abs/2106.11297): K learned maps make K tokens.

A network gives every token a weight between 0 and 1 in each of K maps; a new token is the mean of all tokens, each
multiplied by its weight in one map (eqs. 1 and 2).
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from tpbench.downsampler import Downsampler, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, spread


@register(
    "tokenlearner",
    title="TokenLearner",
    family="learned queries",
    paper="TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?",
    venue="NeurIPS",
    year=2021,
    url="https://arxiv.org/abs/2106.11297",
    differs="maps come from each token alone, by a two-layer network, and not from convolutions: after a reduction "
    "tokens lie on no grid",
)
class TokenLearner(Downsampler):
    """K averages of all tokens under maps that two layers make."""

    @dataclass(frozen=True)
    class Config:
        """The settings of TokenLearner."""

        hidden: Annotated[int, Ge(1)] = 64

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        c = setup.width
        hidden = self.config.hidden
        self.maps = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, hidden), nn.GELU(), nn.Linear(hidden, setup.k), nn.Sigmoid()
        )

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """K averages of the tokens under learned maps."""
        share = self.maps(tokens.body).transpose(1, 2) / tokens.count
        return tokens.with_body(share @ tokens.body, spread(tokens.size, share), share=share)

    def macs(self) -> int:
        """N (C hidden + hidden K) for the maps, and N K C for the averages."""
        n = self.setup.tokens
        c = self.setup.width
        k = self.setup.k
        hidden = self.config.hidden
        return n * (c * hidden + hidden * k) + k * n * c
