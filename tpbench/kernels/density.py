"""Clusters around density peaks (DPC-KNN), from the tokens to the cluster of each.

Shapes: B images, N tokens, K clusters, C width. The functions here are the definition. On a CPU where numba is
installed, `density_peaks` runs in compiled loops (`native.density`) with results equal to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tpbench.kernels import clustering
from tpbench.kernels.device import native_runs_on
from tpbench.kernels.operators import operator, without_autocast, without_gradient
from tpbench.tokens import rows, stable_topk


def density_peaks(x: Tensor, neighbours: int, k: int) -> Tensor:
    """x [B, N, C] -> the cluster of every token: [B, N] int64 in [0, k), no cluster empty.

    A token's density falls with the mean squared distance, per channel, to its nearest `neighbours` (itself counted);
    its separation is the distance to the nearest denser token. The k largest products of the two are the centres, and
    every token joins its nearest one. Of equally dense tokens and equally near centres the first counts.
    """
    with without_gradient(), without_autocast(x.device):
        if x.device.type == "cpu":
            return torch.ops.tpbench.density_peaks(x, neighbours, k)
        return peaks_of_density(x, neighbours, k)


def peaks_of_density(x: Tensor, neighbours: int, k: int) -> Tensor:
    """The definition of `density_peaks`."""
    squared = clustering.squared_distances(x)
    log_density, separation = density_and_separation(squared, x.shape[2], neighbours)
    centres = stable_topk(log_product(log_density, separation), k)
    assignment = rows(squared, centres).min(dim=1).indices
    own = torch.arange(k, device=centres.device).expand_as(centres)
    return assignment.scatter(1, centres, own)  # a centre belongs to its own cluster: none is empty


def density_and_separation(squared: Tensor, width: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Squared distances [B, N, N] of tokens C wide -> logarithm of the density [B, N], squared separation [B, N].

    The densest token is separated by the largest distance of all.
    """
    squared = squared / width
    near = squared.topk(min(neighbours, squared.shape[1]), dim=2, largest=False).values.unbind(dim=2)
    log_density = -(sum(near) / len(near))  # added in order of the distance
    farthest = squared.amax(dim=(1, 2), keepdim=True)
    return log_density, torch.where(is_denser(log_density), squared, farthest).amin(dim=2)


def log_product(log_density: Tensor, separation: Tensor) -> Tensor:
    """Logarithm of density times separation, from the squared separation [B, N]: the product itself would be 0."""
    return log_density + separation.log() / 2


def is_denser(density: Tensor) -> Tensor:
    """[B, N, N] whether token j is denser than token i: density [B, N]; at equal density, if j < i."""
    index = torch.arange(density.shape[1], device=density.device)
    other = density[:, None, :]
    own = density[:, :, None]
    return (other > own) | ((other == own) & (index[None, :] < index[:, None]))


@operator("density_peaks")
def _density_peaks(x: Tensor, neighbours: int, k: int) -> Tensor:
    if not native_runs_on(x.device, torch.promote_types(x.dtype, torch.float32), "density"):
        return peaks_of_density(x, neighbours, k)
    from tpbench.kernels.native import density

    return density.density_peaks(x, neighbours, k)


@torch.library.register_fake("tpbench::density_peaks")
def _(x, neighbours, k):  # noqa: ARG001
    return x.new_empty(x.shape[:2], dtype=torch.int64)


@register_flop_formula(torch.ops.tpbench.density_peaks)
def _density_flops(x, neighbours, k, *args, **kwargs) -> int:  # noqa: ARG001
    batch, n, width = x  # the counter passes shapes
    return 2 * batch * n * n * width
