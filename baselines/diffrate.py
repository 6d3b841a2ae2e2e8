"""DiffRate (Chen et al., ICCV 2023, https://arxiv.org/abs/2305.17997): prune and merge, and learn how many of each.

Tokens are sorted by class attention, and the last are pruned. Of those left, the least attended merge, each into the
most similar of the more attended ones, as a plain mean. Later attention counts the merged key as often as its patches,
each weighted by the similarity of the token that brought it (the logarithm is added to the scores). How many are pruned
and merged in every block is learned (`tpbench search --method diffrate`): a softmax over candidate counts, made hard
with a straight-through gradient, the weights frozen. Written from the paper's description.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Needs, Probe, Search, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, segment_sum, stable_topk


def key_counts(tokens: Tokens) -> Tensor:
    """How often attention counts each body token as a key: [B, N]."""
    return tokens.size if tokens.key_weight is None else tokens.key_weight


class RateSearch(Search):
    """A distribution over the share of the living that survives pruning, and one over the share that merging leaves."""

    needs = Needs.CLS
    weighted_attention = True

    @dataclass(frozen=True)
    class Config:
        """The settings of RateSearch."""

        target: Annotated[float, Interval(ge=0, le=1)] = 0.5  # share of the unreduced model's MACs
        weight: Annotated[float, Ge(0)] = 100.0  # of the squared distance to it; the paper's 5 per GFLOP^2, on DeiT-S
        granularity: Annotated[int, Ge(1)] = 4  # tokens between two candidates

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        counts = torch.arange(setup.tokens, 0, -min(self.config.granularity, setup.tokens))
        self.register_buffer("candidates", counts / setup.tokens)
        favour = -torch.arange(len(counts)).float()  # at first each block keeps about 98 % of the tokens
        self.pruning = nn.Parameter(favour.clone())
        self.merging = nn.Parameter(favour.clone())

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Mask the tokens that are pruned or merged; the merged ones join their partners."""
        alive = torch.ones_like(tokens.size) if tokens.alive is None else tokens.alive
        order = stable_topk(probe.cls.masked_fill(alive == 0, -1), tokens.count)  # the dead come last
        tokens = replace(tokens, alive=alive).keep(order)
        left = tokens.alive * self.survival(self.pruning, tokens.alive)
        stays = left * self.survival(self.merging, left)
        return replace(self.absorb(tokens, left.detach(), stays.detach()), alive=stays)

    def share(self, logits: Tensor) -> Tensor:
        """The expected share that survives: a scalar."""
        return (logits.softmax(dim=0) * self.candidates).sum()

    def survival(self, logits: Tensor, alive: Tensor) -> Tensor:
        """[B, N] 1 for the first living tokens, up to the expected share, with the gradient of their probability."""
        living = alive.detach().sum(dim=1, keepdim=True)
        rank = torch.arange(alive.shape[1], device=alive.device)
        soft = ((rank / living)[:, :, None] < self.candidates).float() @ logits.softmax(dim=0)
        hard = (rank < (self.share(logits) * living).round().clamp(min=1)).float()
        return hard + (soft - soft.detach())  # exactly 0 or 1

    @staticmethod
    def absorb(tokens: Tokens, alive: Tensor, stays: Tensor) -> Tokens:
        """Every token that stays becomes the mean of itself and of the living ones that merge into it."""
        similarity = cosine(tokens.body, tokens.body).masked_fill((stays == 0)[:, None, :], float("-inf"))
        number = torch.arange(tokens.count, device=tokens.x.device)
        score, nearest = similarity.max(dim=2)
        partner = torch.where(stays > 0, number, nearest)
        likeness = torch.where(stays > 0, torch.ones_like(score), score.clamp(min=0))
        joins = F.one_hot(partner, tokens.count) * alive[:, :, None]  # [B, from, to]
        members = joins.sum(dim=1)
        mean = joins.transpose(1, 2) @ tokens.body.float() / members.clamp(min=1)[:, :, None]
        merges = members > 0
        body = torch.where(merges[:, :, None], mean.to(tokens.x.dtype), tokens.body)
        x = torch.cat([tokens.x[:, : tokens.prefix], body], dim=1)
        size = (joins * tokens.size[:, :, None]).sum(dim=1)
        key_weight = (joins * (key_counts(tokens) * likeness)[:, :, None]).sum(dim=1)
        return replace(
            tokens,
            x=x,
            size=torch.where(merges, size, tokens.size),
            key_weight=torch.where(merges, key_weight, key_counts(tokens)),
        )

    def kept(self, arriving: Tensor) -> Tensor:
        """The expected number of tokens that pruning and merging leave."""
        return arriving * self.share(self.pruning) * self.share(self.merging)

    def penalty(self, share: Tensor) -> Tensor:
        """The squared distance to the target, for all blocks together: only the last one returns it."""
        last = self.setup.stage == self.setup.stages - 1
        return self.config.weight * (share - self.config.target) ** 2 if last else share * 0


@register(
    "diffrate",
    title="DiffRate",
    family="merging",
    paper="DiffRate: Differentiable Compression Rate for Efficient Vision Transformers",
    venue="ICCV",
    year=2023,
    url="https://arxiv.org/abs/2305.17997",
    differs="K comes from the schedule, which its search can write; a fixed share of what leaves is pruned; negative "
    "similarities count as 0, so that every key keeps a positive weight",
)
class DiffRate(Downsampler):
    """Prunes a share of the tokens that leave, and merges the others into those that stay."""

    needs = Needs.CLS
    weighted_attention = True
    search = RateSearch

    @dataclass(frozen=True)
    class Config:
        """The settings of DiffRate."""

        # Share of the leaving tokens that are pruned; the others merge.
        pruned: Annotated[float, Interval(ge=0, le=1)] = 0.5

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Prune to `pruned_to` tokens by class attention, then merge down to K."""
        k = self.setup.k
        tokens = tokens.keep(stable_topk(probe.cls, self.pruned_to))
        similarity, partner = cosine(tokens.body[:, k:], tokens.body[:, :k]).max(dim=2)
        stay = torch.arange(k, device=partner.device).expand(partner.shape[0], -1)
        assignment = torch.cat([stay, partner], dim=1)
        likeness = torch.cat([torch.ones_like(tokens.size[:, :k]), similarity.clamp(min=0).float()], dim=1)
        key_weight = segment_sum(key_counts(tokens) * likeness, assignment, k)
        merged = tokens.merge(assignment, k, weight=torch.ones_like(tokens.size))  # the plain mean
        return replace(merged, key_weight=key_weight)

    @property
    def pruned_to(self) -> int:
        """Tokens that are left after pruning."""
        return self.setup.tokens - int(self.config.pruned * (self.setup.tokens - self.setup.k))

    def macs(self) -> int:
        """C for every pair of a token that merges and one that stays: their cosines."""
        return (self.pruned_to - self.setup.k) * self.setup.k * self.setup.width
