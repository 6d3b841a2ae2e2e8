"""Top-K by attention received (PoWER-BERT, Goyal et al., ICML 2020, https://arxiv.org/abs/2001.08950).

The significance of a token is its column sum of the attention matrix; the K most significant stay, in their order.
The paper also learns K for every block; here that is `tpbench search --method topk`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tpbench.downsampler import Downsampler, Needs, Probe, Search, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, stable_topk


class SoftExtract(Search):
    """The token of rank j by significance is multiplied by a learned r[j] in [0, 1]; K is the sum of r."""

    needs = Needs.RECEIVED

    @dataclass(frozen=True)
    class Config:
        """The settings of SoftExtract."""

        strength: float = 1e-3  # lambda: what a kept token costs, times the number of its block from 1 on

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.retention = nn.Parameter(torch.ones(setup.tokens))

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Scale every token by the retention of its rank in attention received."""
        with torch.no_grad():
            self.retention.clamp_(0, 1)
        rank = stable_topk(probe.received, tokens.count).argsort(dim=1)
        scale = nn.functional.pad(self.retention[rank], (tokens.prefix, 0), value=1.0)
        return replace(tokens, x=tokens.x * scale[:, :, None].to(tokens.x.dtype))

    def kept(self, arriving: Tensor) -> Tensor:
        """The sum of the retentions, at most the tokens that arrive."""
        return torch.minimum(self.retention.clamp(0, 1).sum(), arriving)

    def penalty(self, share: Tensor) -> Tensor:  # noqa: ARG002
        """The strength times the block's number from 1 times the sum of the retentions."""
        return self.config.strength * (self.setup.block + 1) * self.retention.sum()


@register(
    "topk",
    title="Top-K by attention received (PoWER-BERT)",
    family="pruning",
    paper="PoWER-BERT: Accelerating BERT Inference via Progressive Word-vector Elimination",
    venue="ICML",
    year=2020,
    url="https://arxiv.org/abs/2001.08950",
    differs="K comes from the schedule; the paper's search writes one (learned:FILE) that any method can use",
)
class TopK(Downsampler):
    """Keeps the K tokens that receive the most attention."""

    needs = Needs.RECEIVED
    search = SoftExtract

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep the K tokens that receive most attention, in their order."""
        return tokens.keep(stable_topk(probe.received, self.setup.k).sort(dim=1).values)
