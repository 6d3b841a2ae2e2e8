"""Tokens averaged by cluster.

Shapes: B images, N tokens, K clusters, C width. The functions here are the definition. Without a gradient, on a CPU
where numba is installed, `segment_mean` runs in compiled loops (`native.segments`) with results equal to the last bit.
The definition changes no tensor in place, because it is exported to ONNX in place of the operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpbench.kernels.device import native_runs_on
from tpbench.kernels.operators import operator


def segment_sum(value: Tensor, assignment: Tensor, k: int) -> Tensor:
    """value [B, N] summed per cluster: [B, k], in the order of the tokens."""
    return value.new_zeros(value.shape[0], k).scatter_add(1, assignment, value)


def segment_mean(x: Tensor, weight: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Weighted mean of x [B, N, C] per cluster, in float32 or better: [B, k, C] in x's dtype.

    Clusters whose members all weigh 0 take their plain mean; clusters without members are 0.
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.device.type != "cpu" or trains or x.dtype not in (torch.float32, torch.float64):
        return mean_by_cluster(x, weight, assignment, k)
    return torch.ops.tpbench.segment_mean(x, weight, assignment, k)


def mean_by_cluster(x: Tensor, weight: Tensor, assignment: Tensor, k: int) -> Tensor:
    """The definition of `segment_mean`."""
    batch, _, width = x.shape
    exact = torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(exact)
    total = segment_sum(weight, assignment, k)
    weight = torch.where(total.gather(1, assignment) > 0, weight, torch.ones_like(weight))
    total = segment_sum(weight, assignment, k)
    share = weight / total.gather(1, assignment)
    flat = (assignment + torch.arange(batch, device=x.device)[:, None] * k).reshape(-1)
    weighted = (x.to(exact) * share[:, :, None]).reshape(-1, width)
    mean = weighted.new_zeros(batch * k, width).index_add(0, flat, weighted)
    return mean.view(batch, k, width).to(x.dtype)


@operator("segment_mean")
def _segment_mean(x: Tensor, weight: Tensor, assignment: Tensor, k: int) -> Tensor:
    if not native_runs_on(x.device, x.dtype, "segments"):
        return mean_by_cluster(x, weight, assignment, k)
    from tpbench.kernels.native import segments

    return segments.segment_mean(x, weight, assignment, k)


@torch.library.register_fake("tpbench::segment_mean")
def _(x, weight, assignment, k):  # noqa: ARG001
    return x.new_empty(x.shape[0], k, x.shape[2])
