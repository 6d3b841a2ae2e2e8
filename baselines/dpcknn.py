"""DPC-KNN (Du et al., 2016; as token clustering in TCFormer, Zeng et al., CVPR 2022, https://arxiv.org/abs/2204.08680).

Density peaks: a token's density falls with the mean squared distance to its 5 nearest (itself counted, as published),
its separation is the distance to the nearest denser token. The K highest products of the two are the centres, every
token joins its nearest centre, and clusters merge into their mean. Products are compared by their logarithms, since
exp(-d^2) is 0 in float32 for tokens far apart.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from tpbench.downsampler import Downsampler, Probe
from tpbench.kernels.density import density_peaks
from tpbench.registry import register
from tpbench.tokens import Tokens


@register(
    "dpcknn",
    title="DPC-KNN clustering",
    family="clustering",
    paper="Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer",
    venue="CVPR",
    year=2022,
    url="https://arxiv.org/abs/2204.08680",
    differs="merges by the patches tokens stand for, not by a learned score; of equally dense tokens the lower index "
    "counts as denser, where the published code adds random noise",
)
class DPCKNN(Downsampler):
    """Merges tokens into the K clusters around density peaks."""

    @dataclass(frozen=True)
    class Config:
        """The settings of DPCKNN."""

        neighbours: Annotated[int, Ge(1)] = 5

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """Merge every token into the density peak that it belongs to."""
        assignment = density_peaks(tokens.body, self.config.neighbours, self.setup.k)
        return tokens.merge(assignment, self.setup.k)

    def macs(self) -> int:
        """N^2 C: the distances of all pairs."""
        return self.setup.tokens**2 * self.setup.width
