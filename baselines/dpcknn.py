"""DPC-KNN (Du et al., 2016; as token clustering in TCFormer, Zeng et al., CVPR 2022, https://arxiv.org/abs/2204.08680).

Density peaks: a token's density falls with the mean squared distance to its 5 nearest (itself counted, as published),
its separation is the distance to the nearest denser token. The K highest products of the two are the centres, every
token joins its nearest centre, and clusters merge into their mean. Products are compared by their logarithms, since
exp(-d^2) is 0 in float32 for tokens far apart.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from tpbench.downsampler import Downsampler, Probe
from tpbench.kernels.clustering import squared_distances
from tpbench.registry import register
from tpbench.tokens import Tokens, rows, stable_topk


def is_denser(density: Tensor) -> Tensor:
    """[B, N, N] whether token j is denser than token i: density [B, N]; of two alike the lower index is."""
    index = torch.arange(density.shape[1], device=density.device)
    other, own = density[:, None, :], density[:, :, None]
    return (other > own) | ((other == own) & (index[None, :] < index[:, None]))


@register(
    "dpcknn",
    title="DPC-KNN clustering",
    paper="Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer",
    venue="CVPR",
    year=2022,
    url="https://arxiv.org/abs/2204.08680",
    differs="merges by the patches tokens stand for, not by a learned score; of equally dense tokens the lower index "
    "counts as denser, where the published code adds random noise",
)
class DPCKNN(Downsampler):
    @dataclass(frozen=True)
    class Config:
        neighbours: Annotated[int, Ge(1)] = 5

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        with torch.no_grad(), torch.autocast(tokens.x.device.type, enabled=False):
            squared = squared_distances(tokens.body) / self.setup.width
            near = squared.topk(min(self.config.neighbours, tokens.count), dim=2, largest=False).values
            log_density = -near.mean(dim=2)
            distance = squared.sqrt()
            farthest = distance.amax(dim=(1, 2), keepdim=True)
            separation = torch.where(is_denser(log_density), distance, farthest).amin(dim=2)
            centres = stable_topk(log_density + separation.log(), self.setup.k)
            assignment = rows(distance, centres).min(dim=1).indices
            own = torch.arange(self.setup.k, device=centres.device).expand_as(centres)
            assignment = assignment.scatter(1, centres, own)  # a centre belongs to its own cluster: none is empty
        return tokens.merge(assignment, self.setup.k)

    def macs(self) -> int:
        return self.setup.tokens**2 * self.setup.width
