"""Zero-TPrune (Wang et al., CVPR 2024, https://arxiv.org/abs/2305.17328): prune unimportant, redundant tokens.

The attention of every head is a graph, and the importance of a token is its weighted PageRank there: its share after
many rounds in which each token passes its share on to those it attends to. Heads are combined by a root mean square
weighted by their variances. The less important half of the tokens is compared with the other half, and those most
similar to one of it are dropped.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from baselines.tome import ToMe, head_mean
from tpbench.downsampler import Needs, Probe
from tpbench.kernels.attention import attention_transpose_apply
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, rows, stable_topk


@register(
    "zerotprune",
    title="Zero-TPrune",
    family="pruning",
    paper="Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
    venue="CVPR",
    year=2024,
    url="https://arxiv.org/abs/2305.17328",
    differs="importance splits the tokens in halves and similarity alone decides which leave, at most half in one "
    "block; no head is filtered out by its variance; rounds fall from 30 to 5 to 1 over the schedule's blocks, not the "
    "model's",
)
class ZeroTPrune(ToMe):
    """Keeps the more important half of the tokens, and of the others those least similar to it."""

    needs = Needs.QUERIES | Needs.KEYS
    weighted_attention = False

    @dataclass(frozen=True)
    class Config:
        """The settings of ZeroTPrune."""

        rounds: Annotated[int, Ge(1)] = 30  # of PageRank in the first quarter of the schedule's blocks

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Drop N - K of the less important tokens, the most similar to an important one first."""
        order = stable_topk(self.importance(probe)[:, tokens.prefix :], tokens.count)
        important = order[:, : tokens.count - tokens.count // 2]
        others = order[:, tokens.count - tokens.count // 2 :]
        metric = head_mean(probe.keys[:, :, tokens.prefix :])
        likeness = cosine(rows(metric, others), rows(metric, important)).amax(dim=2)
        left = torch.argsort(likeness, dim=1, stable=True)[:, : self.setup.k - important.shape[1]]
        kept = torch.cat([important, others.gather(1, left)], dim=1)
        return tokens.keep(kept.sort(dim=1).values)

    @torch.no_grad()
    def importance(self, probe: Probe) -> Tensor:
        """[B, P + N] from the attention of all heads."""
        batch, heads, n, _ = probe.queries.shape
        start = torch.full((batch, heads, n), 1 / n, dtype=torch.float32, device=probe.queries.device)
        with torch.autocast(start.device.type, enabled=False):
            queries = probe.queries.to(probe.rotated_keys.dtype)
            rank = attention_transpose_apply(queries, probe.rotated_keys, start, self.rounds)
        variance = rank.var(dim=2, keepdim=True)
        share = variance / variance.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (share * rank.square()).sum(dim=1).sqrt()

    @property
    def rounds(self) -> int:
        """All in the first quarter of the schedule's blocks, a sixth of them in the middle, one in the last quarter."""
        stage = self.setup.stage
        stages = self.setup.stages
        if 4 * stage < stages:
            return self.config.rounds
        return max(1, self.config.rounds // 6) if 4 * (stage + 1) <= 3 * stages else 1

    def macs(self) -> int:
        """Those of the ranking over the attention of all heads, and of the cosines between the halves."""
        n = self.setup.tokens
        heads = self.setup.heads
        width = self.setup.width // heads
        ranking = heads * (self.setup.prefix + n) ** 2 * (width + self.rounds)
        return ranking + (n // 2) * (n - n // 2) * width
