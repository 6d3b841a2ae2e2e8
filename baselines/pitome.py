"""PiToMe (Tran et al., NeurIPS 2024, https://arxiv.org/abs/2405.16148): merge where tokens are many and alike.

A token's energy is its mean similarity to the others beyond a margin, which shrinks with depth. In the first half of
layers the sorted tokens are split alternately and the r most similar pairs merge; in the second half only the 2r tokens
of highest energy may merge. Written from the paper's description.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from baselines.tome import ToMe, merged
from tpbench.downsampler import Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "pitome",
    title="PiToMe",
    paper="Accelerating Transformers with Spectrum-Preserving Token Merging",
    venue="NeurIPS",
    year=2024,
    url="https://arxiv.org/abs/2405.16148",
    differs="depth is counted over the schedule's blocks; r follows from its tokens, at most half in one block",
)
class PiToMe(ToMe):
    @dataclass(frozen=True)
    class Config:
        margin: float = 0.75  # at the first reducing block, falling to 0 at the last but one after

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        r, depth = tokens.count - self.setup.k, self.setup.stage / self.setup.stages
        metric = F.normalize(probe.keys[:, :, tokens.prefix :].mean(dim=1), dim=-1)
        cosine = metric @ metric.transpose(1, 2)
        energy = F.elu(cosine - self.config.margin * (1 - depth)).mean(dim=2)
        among = tokens.count if depth < 0.5 else 2 * r
        order = torch.argsort(energy, dim=1, descending=True, stable=True)[:, :among]
        first, second = order[:, ::2], order[:, 1::2]
        block = cosine.gather(1, first[:, :, None].expand(-1, -1, tokens.count))
        score, best = block.gather(2, second[:, None, :].expand(-1, first.shape[1], -1)).max(dim=2)
        chosen = torch.argsort(score, dim=1, descending=True, stable=True)[:, :r]
        return merged(tokens, first.gather(1, chosen), second.gather(1, best.gather(1, chosen)), self.setup.k)

    def macs(self) -> int:
        return self.setup.tokens**2 * self.setup.width // self.setup.heads
