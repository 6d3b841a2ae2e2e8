"""ATS (Fayyaz et al., ECCV 2022, https://arxiv.org/abs/2111.15667): tokens sampled by inverse transform.

Scores are the class token's attention times the length of the values; K evenly spaced quantiles of their cumulative
distribution, scores in rising order, name at most K tokens. How many depends on the image: the rest of the K places is
padding that no token sees.
"""

import torch

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "ats",
    title="Adaptive Token Sampler",
    paper="Adaptive Token Sampling for Efficient Vision Transformers",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2111.15667",
    count="at_most",
    differs="gathered after attention, which equals selecting its rows; time is that of the padded K",
)
class ATS(Downsampler):
    needs = Needs.CLS | Needs.VALUES

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        length = probe.values[:, :, tokens.prefix :].float().square().sum(dim=(1, 3)).sqrt()
        score = probe.cls * length if tokens.alive is None else probe.cls * length * tokens.alive
        rising, order = score.sort(dim=1, stable=True)
        total = rising.cumsum(dim=1) / rising.sum(dim=1, keepdim=True)
        quantile = (torch.arange(self.setup.k, device=score.device) + 0.5) / self.setup.k
        place = torch.searchsorted(total, quantile.expand(score.shape[0], -1).contiguous()).clamp(max=tokens.count - 1)
        first = torch.ones_like(place, dtype=torch.bool)
        first[:, 1:] = place[:, 1:] > place[:, :-1]  # quantiles rise, so repeated tokens stand side by side
        kept = tokens.keep(order.gather(1, place))
        kept.alive = first.float()
        return kept
