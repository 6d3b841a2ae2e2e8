"""Token Pooling: K-Means, K-Medoids and their weighted forms (Marin et al., arXiv 2110.03860, WACV 2023).

The paper leaves open whether a token's attention to itself counts, where the clustering starts, what replaces a
cluster, and whether tokens are normalised first. Each is a setting here, with the likeliest reading as the default; the
recipe `ablations` measures their effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Needs, Probe
from tpbench.errors import UsageError
from tpbench.pooling import cluster
from tpbench.registry import register
from tpbench.tokens import Tokens, segment_sum


class TokenPooling(Downsampler):
    """Cluster the body tokens, weighted by the attention each receives, and keep one token for each cluster."""

    needs = Needs.RECEIVED
    weighted: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Config:
        """The settings of TokenPooling."""

        iterations: Annotated[int, Ge(0)] = 5
        init: cluster.Initialisation = "topk"
        weights: Literal["received", "others", "class"] = "received"  # others: without what a token pays to itself
        normalise: bool = False  # cluster directions instead of tokens

        def __post_init__(self) -> None:
            if self.iterations < 0:
                raise UsageError(f"iterations {self.iterations}: at least 0 are needed")

    @classmethod
    def asks(cls, config: Config) -> Needs:
        """The attention that weighs the tokens: the class token's, or the attention that each receives."""
        return Needs.CLS if config.weights == "class" else Needs.RECEIVED

    def significance(self, probe: Probe) -> Tensor:
        """[B, N] float32: attention received (PoWER-BERT's significance score), or that of the class token only."""
        if self.config.weights == "class":
            return probe.cls
        received = probe.received if self.config.weights == "received" else probe.received - probe.own
        return received.clamp(min=0)

    def clustering(self, tokens: Tokens, probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
        """The points to cluster [B, N, C], their weights [B, N], and the score [B, N] for the start of the clustering.

        The score is the significance, also where all weights are equal.
        """
        significance = self.significance(probe)
        weight = significance if self.weighted else torch.ones_like(significance)
        points = F.normalize(tokens.body.float(), dim=-1) if self.config.normalise else tokens.body
        return points, weight, significance

    def pair_macs(self) -> int:
        """The inner products of all pairs, and one multiply-add for each pair and iteration."""
        n = self.setup.tokens
        return n * n * (self.setup.width + self.config.iterations)


@register(
    "wkmedoids",
    title="Token Pooling, weighted K-Medoids",
    family="clustering",
    paper="Token Pooling in Vision Transformers for Image Classification",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2110.03860",
    differs="the paper leaves placement, start and diagonal open; here: after attention, top-K by significance, with "
    "the diagonal",
)
class WeightedKMedoids(TokenPooling):
    """Each cluster is replaced by its medoid, so that the kept tokens are a subset of the tokens."""

    @dataclass(frozen=True)
    class Config(TokenPooling.Config):
        """The settings of WeightedKMedoids."""

        output: Literal["medoid", "mean", "weighted_mean"] = "medoid"

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """The medoids of K clusters or their means, by `output`; each stands for the patches of its cluster."""
        points, weight, score = self.clustering(tokens, probe)
        medoids, assignment = cluster.kmedoids(
            points, weight, self.setup.k, iterations=self.config.iterations, init=self.config.init, score=score
        )
        if self.config.output == "medoid":
            return tokens.keep(medoids, assignment=assignment)
        return tokens.merge(assignment, self.setup.k, weight if self.config.output == "weighted_mean" else None)

    def macs(self) -> int:
        """Those of all pairs, see `pair_macs`; a medoid needs no further product."""
        return self.pair_macs()


@register(
    "kmedoids",
    title="Token Pooling, K-Medoids",
    family="clustering",
    paper="Token Pooling in Vision Transformers for Image Classification",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2110.03860",
    differs="as wkmedoids; every token weighs the same, the start is still top-K by significance",
)
class KMedoids(WeightedKMedoids):
    """K-Medoids in which every token weighs the same; the start is that of the weighted form."""

    weighted = False


@register(
    "wkpeaks",
    title="Weighted K-Medoids from peaks (this suite's own)",
    family="clustering",
    differs="not the paper's: wkmedoids with a start from significance peaks instead of top-K, and two iterations",
)
class PeaksKMedoids(WeightedKMedoids):
    """Token Pooling with a start that already covers the tokens: two iterations reach a lower objective."""

    @dataclass(frozen=True)
    class Config(WeightedKMedoids.Config):
        """The settings of PeaksKMedoids."""

        iterations: Annotated[int, Ge(0)] = 2
        init: cluster.Initialisation = "peaks"


@register(
    "wkmeans",
    title="Token Pooling, weighted K-Means",
    family="clustering",
    paper="Token Pooling in Vision Transformers for Image Classification",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2110.03860",
    differs="as wkmedoids; the iterations run on inner products, with the same iterates",
)
class WeightedKMeans(TokenPooling):
    """Each cluster is replaced by its centre, the weighted mean of its members."""

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """The weighted means of K clusters; each stands for the patches of its cluster."""
        points, weight, score = self.clustering(tokens, probe)
        centres, assignment = cluster.kmeans(
            points, weight, self.setup.k, iterations=self.config.iterations, init=self.config.init, score=score
        )
        if self.config.normalise:  # the centres are directions: average the tokens themselves
            return tokens.merge(assignment, self.setup.k, weight)
        size = segment_sum(tokens.size, assignment, self.setup.k)
        return tokens.with_body(centres, size, assignment=assignment)

    def macs(self) -> int:
        """Those of all pairs, see `pair_macs`, and K N C for the means."""
        return self.pair_macs() + self.setup.k * self.setup.tokens * self.setup.width


@register(
    "kmeans",
    title="Token Pooling, K-Means",
    family="clustering",
    paper="Token Pooling in Vision Transformers for Image Classification",
    venue="WACV",
    year=2023,
    url="https://arxiv.org/abs/2110.03860",
    differs="as wkmeans; every token weighs the same, the start is still top-K by significance",
)
class KMeans(WeightedKMeans):
    """K-Means in which every token weighs the same; the start is that of the weighted form."""

    weighted = False
