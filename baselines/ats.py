"""ATS (Fayyaz et al., ECCV 2022, https://arxiv.org/abs/2111.15667): tokens sampled by inverse transform.

Scores are the class token's attention times the length of the values. They are sorted in rising order and summed up,
and the sums are scaled to run from 0 to 1. K samples, evenly spaced from the smallest positive sum to 1, each take the
token whose sum is nearest: at most K different tokens. How many depends on the image; the other places are padding that
no token sees. Sums and samples are those of the published code; the paper writes (2s - 1) / 2K for the samples.
"""

import torch

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.kernels.sampling import nearest_samples
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "ats",
    title="Adaptive Token Sampler",
    family="pruning",
    paper="Adaptive Token Sampling for Efficient Vision Transformers",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2111.15667",
    count="at_most",
    differs="gathered after attention, which equals selecting its rows; time is that of the padded K; samples as in "
    "the published code, but K of them instead of one for each patch",
)
class ATS(Downsampler):
    """Samples up to K different tokens of each image; the rest of the K places is padding, which is not alive."""

    needs = Needs.CLS | Needs.VALUES

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Sample up to K different tokens; what is left of the K places is padding."""
        length = probe.values[:, :, tokens.prefix :].float().square().sum(dim=(1, 3)).sqrt()
        score = probe.cls * length if tokens.alive is None else probe.cls * length * tokens.alive
        rising, order = score.sort(dim=1, stable=True)
        place = nearest_samples(rising, self.setup.k)
        first = torch.ones_like(place, dtype=torch.bool)
        first[:, 1:] = place[:, 1:] > place[:, :-1]  # samples rise, so repeated tokens stand side by side
        kept = tokens.keep(order.gather(1, place))
        kept.alive = first.float()
        return kept
