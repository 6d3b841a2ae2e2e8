"""Every operator written in operations that ONNX has, for finite inputs; `tpbench.measure.export` uses them instead.

Shapes: B images or sets, H heads, N tokens, K clusters, C width. No tensor is changed in place, because ONNX's exporter
refuses that. A definition that changes none already is its own plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tpbench.kernels import clustering
from tpbench.kernels.agglomerative import merge_nearest
from tpbench.kernels.density import peaks_of_density
from tpbench.kernels.matching import halves_matched, matched_by_energy
from tpbench.kernels.sampling import nearest_sums
from tpbench.kernels.segments import mean_by_cluster


def attend_and_receive(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `attention.attend_and_receive`: output [B, H, N, D], attention received [B, N] and its diagonal [B, N]."""
    scores = (q * scale) @ k.transpose(-2, -1)
    attention = (scores if bias is None else scores + bias).softmax(dim=-1)
    received = attention.float().sum(dim=2).mean(dim=1)
    own = attention.diagonal(dim1=-2, dim2=-1).float().mean(dim=1)
    out = (attention @ v).transpose(1, 2).contiguous().transpose(1, 2)  # laid out as the operator's own
    return out, received, own


def attention_transpose_apply(q: Tensor, k: Tensor, s: Tensor, times: int) -> Tensor:
    """As `attention.attention_transpose_apply`: s [B, H, N] after `times` products with the transposed attention."""
    attention = (q @ k.transpose(-2, -1)).softmax(dim=-1).to(s.dtype)
    row = s[:, :, None]
    for _ in range(times):
        row = row @ attention
    return row[:, :, 0]


def kmedoids(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """As `clustering.kmedoids`: medoids [B, K] and the cluster of every token [B, N]."""
    distance = clustering.squared_distances(x)
    medoids = _chosen(start, distance, score, k) if first is None else first
    own = torch.arange(k, device=x.device)
    for _ in range(iterations):
        assignment = _nearest(distance, medoids)
        together = assignment[:, :, None] == assignment[:, None, :]
        cost = torch.where(together, distance * weight[:, :, None], 0).sum(1)
        member = assignment[:, None, :] == own[:, None]
        medoids = torch.where(member, cost[:, None, :], float("inf")).argmin(2)
    return medoids, _nearest(distance, medoids)


def _chosen(start: str, distance: Tensor, score: Tensor, k: int) -> Tensor:
    """The first medoids or centres [B, K], as the operators choose them; NotImplementedError for other starts."""
    if start == "topk":
        return clustering.heaviest(score, k)
    if start != "peaks":
        raise NotImplementedError(f"the start {start!r} has no plain form")
    rank = clustering.heaviest(score, score.shape[1]).argsort(1)
    heavier = rank[:, None, :] < rank[:, :, None]
    apart = torch.where(heavier, distance, torch.finfo(distance.dtype).max).amin(2)
    return clustering.heaviest(torch.where(rank == 0, float("inf"), score * apart), k)


def _nearest(distance: Tensor, medoids: Tensor) -> Tensor:
    batch, k = medoids.shape
    to_medoid = distance.gather(1, medoids[:, :, None].expand(batch, k, distance.shape[2]))
    own = torch.arange(k, device=medoids.device).expand(batch, k)
    return to_medoid.argmin(1).scatter(1, medoids, own)


def kmeans(
    x: Tensor, weight: Tensor, score: Tensor, first: Tensor | None, start: str, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """As `clustering.kmeans`: share [B, K, N] of every token in each centre, and its cluster [B, N]."""
    products = clustering.inner_products(x)
    own = torch.arange(x.shape[1], device=x.device)
    first = _chosen(start, clustering.distances_from(products), score, k) if first is None else first
    share = (first[:, :, None] == own).to(products.dtype)
    for _ in range(iterations):
        member = (_nearest_centre(products, share)[:, None, :] == own[:k, None]).to(products.dtype)
        mass = member * weight[:, None, :]
        total = mass.sum(2, keepdim=True)
        share = torch.where(total > 0, mass / total.clamp(min=torch.finfo(mass.dtype).tiny), share)
    return share, _nearest_centre(products, share)


def _nearest_centre(products: Tensor, share: Tensor) -> Tensor:
    inner = share @ products
    return ((share * inner).sum(2, keepdim=True) - 2 * inner).argmin(1)


def searchsorted(rising: Tensor, values: Tensor, **_: object) -> Tensor:
    """As `torch.searchsorted`, the way ATS calls it: how many of `rising` [B, N] lie below each of `values` [B, K]."""
    return (rising[:, None, :] < values[:, :, None]).sum(2)


# Operator -> its plain form.
PLAIN: dict[str, Callable[..., Any]] = {
    "tpbench::agglomerate": merge_nearest,
    "tpbench::attention_transpose_apply": attention_transpose_apply,
    "tpbench::attend_and_receive": attend_and_receive,
    "tpbench::kmedoids": kmedoids,
    "tpbench::kmeans": kmeans,
    "tpbench::density_peaks": peaks_of_density,
    "tpbench::match_by_energy": matched_by_energy,
    "tpbench::match_halves": halves_matched,
    "tpbench::nearest_samples": nearest_sums,
    "tpbench::segment_mean": mean_by_cluster,
    "aten::searchsorted": searchsorted,
}
