"""GTP (Xu et al., WACV 2024, https://arxiv.org/abs/2311.03035): prune, and propagate what is pruned along a graph.

A token is worth keeping if it attends much to itself, since the others could hardly reconstruct it, and if the others
attend much to it. The graph joins neighbours on the patch grid, and every token with those most similar to it; a weight
is divided by the roots of the degrees of both ends. Each token that stays adds a fraction of its pruned neighbours to
itself. The number of times that later attention counts it grows in the same way. Written from the paper's description;
the defaults are those of its public code.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from tpbench.downsampler import Downsampler, Needs, Probe, Setup
from tpbench.errors import UnsupportedModel
from tpbench.provenance import DROPPED, MERGED, on_grid
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, rows, segment_sum, stable_topk


@register(
    "gtp",
    title="Graph-based Token Propagation (GTP)",
    family="merging",
    paper="GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation",
    venue="WACV",
    year=2024,
    url="https://arxiv.org/abs/2311.03035",
    differs="both attentions of the score are means over heads, not maxima, which the fused operator does not give; "
    "similarities and degrees are those of the tokens that arrive, not of the embedded patches; attention maps are not "
    "made sparse; the patches of a pruned token go to the kept neighbour with the heaviest edge, or to none",
)
class GTP(Downsampler):
    """Keeps the K tokens with the largest product of attention to themselves and attention received."""

    needs = Needs.RECEIVED

    @dataclass(frozen=True)
    class Config:
        """The settings of GTP."""

        strength: Annotated[float, Ge(0)] = 0.1  # alpha, the fraction that is propagated
        similar: Annotated[int, Ge(1)] = 8  # edges from each token to those most similar to it
        proportional: bool = True  # later attention counts a key by what it stands for and has received

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.weighted_attention = self.config.proportional

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Keep K tokens; each adds a fraction of its dropped neighbours."""
        tokens = with_places(tokens)
        order = stable_topk(probe.own * probe.received, tokens.count)
        kept = order[:, : self.setup.k].sort(dim=1).values
        dropped = order[:, self.setup.k :]
        edges = rows(self.graph(tokens), kept)
        message = self.config.strength * edges.gather(2, dropped[:, None, :].expand(-1, self.setup.k, -1))
        count = tokens.size if tokens.key_weight is None else tokens.key_weight
        heard = (message * count.gather(1, dropped)[:, None, :]).sum(dim=2)
        body = rows(tokens.body, kept) + message.to(tokens.x.dtype) @ rows(tokens.body, dropped)
        out = keep_and_absorb(tokens, kept, edges)
        x = torch.cat([tokens.x[:, : tokens.prefix], body], dim=1)
        return replace(out, x=x, key_weight=count.gather(1, kept) + heard)

    def graph(self, tokens: Tokens) -> Tensor:
        """The weight of the edge between every two body tokens, 0 where there is none: [B, N, N] float32."""
        place = torch.stack([tokens.carry["row"], tokens.carry["column"]], dim=2)
        apart = (place[:, :, None] - place[:, None, :]).abs().amax(dim=3)
        itself = torch.eye(tokens.count, dtype=torch.bool, device=place.device)
        likeness = cosine(tokens.body, tokens.body).masked_fill(itself, float("-inf"))
        least = likeness.topk(min(self.config.similar, tokens.count), dim=2).values[:, :, -1:]
        edges = (((apart <= 1) | (likeness >= least)) & ~itself).float()
        scale = edges.sum(dim=2).clamp(min=1).rsqrt()
        return scale[:, :, None] * edges * scale[:, None, :]

    def macs(self) -> int:
        """The cosines of all pairs, and the products of edges with dropped tokens."""
        n = self.setup.tokens
        k = self.setup.k
        width = self.setup.width
        return (n * n + k * (n - k)) * width


def with_places(tokens: Tokens) -> Tokens:
    """The tokens with the row and the column of each on the patch grid, which stay with those that are kept."""
    if "row" in tokens.carry:
        return tokens
    if tokens.grid is None:
        raise UnsupportedModel("gtp needs to know where the patches lie: the tokens that arrive are on no grid")
    place = on_grid(tokens.grid, tokens.x.device).expand(tokens.x.shape[0], -1, -1)
    return replace(tokens, carry={**tokens.carry, "row": place[:, :, 0], "column": place[:, :, 1]})


def keep_and_absorb(tokens: Tokens, kept: Tensor, edges: Tensor) -> Tokens:
    """The body tokens kept [B, K], each with the patches of the tokens whose heaviest edge leads to it.

    edges [B, K, N] from the kept tokens to all. A token that has no edge to any of them is dropped.
    """
    k = kept.shape[1]
    own = torch.arange(k, device=kept.device).expand_as(kept)
    weight, host = edges.max(dim=1)
    assignment = torch.where(weight > 0, host, DROPPED).scatter(1, kept, own)
    size = segment_sum(tokens.size * (assignment != DROPPED), assignment.clamp(min=0), k)
    out = tokens.keep(kept, size=size, assignment=assignment)
    if out.provenance is None:
        return out
    alone = edges.scatter(2, kept[:, None, :].expand(-1, k, -1), 0.0).sum(dim=2) == 0
    patch = torch.where(alone, out.provenance.patch, MERGED)
    return replace(out, provenance=replace(out.provenance, patch=patch, exact=False))
