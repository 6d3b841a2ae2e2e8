"""A method in one file: cut the sequence of tokens into K runs of neighbours and merge each run into its mean.

python -m tpbench run --recipe smoke --plugin examples/runs.py --methods "none,topk,runs,runs(weighted=True)"
"""

from dataclasses import dataclass

import torch

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register("runs", title="Runs of neighbouring tokens")
class Runs(Downsampler):
    @dataclass(frozen=True)
    class Config:
        weighted: bool = False  # weight tokens by the attention that they receive

    @classmethod
    def asks(cls, config: Config) -> Needs:
        return Needs.RECEIVED if config.weighted else Needs.NONE

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        k = self.setup.k
        run = torch.arange(tokens.count, device=tokens.x.device) * k // tokens.count
        assignment = run.expand(tokens.x.shape[0], -1)
        return tokens.merge(assignment, k, probe.received)  # None if not requested: sizes are then the weights
