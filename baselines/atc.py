"""ATC (Haurum et al., ECCV 2024, https://arxiv.org/abs/2409.11923): agglomerative clustering of the tokens.

Tokens are compared by the cosine of their head-averaged keys. From every token alone, the two nearest clusters merge
until K are left, and each cluster becomes the size-weighted mean of its tokens. The published code clusters image by
image with scikit-learn; here all images of a batch are clustered together, with the same clusters.
"""

from dataclasses import dataclass

from baselines.tome import head_mean
from tpbench.downsampler import Downsampler, Needs, Probe, Setup
from tpbench.kernels import agglomerative
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine


@register(
    "atc",
    title="Agglomerative Token Clustering",
    family="clustering",
    paper="Agglomerative Token Clustering",
    venue="ECCV",
    year=2024,
    url="https://arxiv.org/abs/2409.11923",
    differs="one linkage for all schedules, where the paper reports the best of three: complete, as in its published "
    "command; of equally near clusters those with the lowest token merge first",
)
class ATC(Downsampler):
    """Merges the clusters of an agglomerative clustering of the keys."""

    needs = Needs.KEYS
    weighted_attention = True

    @dataclass(frozen=True)
    class Config:
        """The settings of ATC."""

        linkage: agglomerative.Linkage = "complete"
        proportional: bool = True  # later attention counts keys by their sizes, as ToMe's does

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.weighted_attention = self.config.proportional

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Cluster the body tokens until K clusters are left, and merge each."""
        features = head_mean(probe.keys[:, :, tokens.prefix :])
        distance = 1 - cosine(features, features)
        return tokens.merge(agglomerative.agglomerate(distance, self.setup.k, self.config.linkage), self.setup.k)

    def macs(self) -> int:
        """N^2 D for the cosines of all pairs of head-averaged keys, and those of the merging."""
        n = self.setup.tokens
        merging = agglomerative.merge_macs(n, self.setup.k, self.config.linkage)
        return n * n * (self.setup.width // self.setup.heads) + merging
