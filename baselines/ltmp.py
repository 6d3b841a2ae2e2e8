"""LTMP (Bonnaerens and Dambre, TMLR 2023, https://arxiv.org/abs/2307.10780): thresholds to merge and prune by.

Tokens are split alternately into sets A and B. A token of A merges into the most similar one of B where the cosine of
their keys is above the block's first threshold; a token is pruned where the attention that it receives is below the
second. Training only masks the tokens that leave, and a sigmoid gives the two thresholds of a block their gradient. At
inference the N - K tokens farthest beyond a threshold leave. `tpbench search --method ltmp` trains the thresholds alone
until the tokens they leave cost a given share of the MACs. Written from the paper's description.
"""

from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.tome import head_mean
from tpbench.downsampler import Downsampler, Needs, Probe, Search, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, stable_topk

Temperature = Annotated[float, Gt(0)]


class Excess(NamedTuple):
    """How far body tokens are beyond the two thresholds, and whom they would merge with: [B, N] each.

    merging  cosine to the host above the first threshold; -inf for tokens of B, which do not merge
    pruning  attention received below the second threshold, in units of the mean over living tokens
    host     the most similar living token of B
    """

    merging: Tensor
    pruning: Tensor
    host: Tensor

    @property
    def larger(self) -> Tensor:
        """[B, N], without gradient; a token leaves where it is positive."""
        return torch.maximum(self.merging, self.pruning).detach()


class Thresholds(Downsampler):
    """The two thresholds of a block, and tokens masked by them."""

    needs = Needs.KEYS | Needs.RECEIVED
    weighted_attention = True

    def __init__(self, setup: Setup, config: Downsampler.Config | None = None):
        super().__init__(setup, config)
        self.merging = nn.Parameter(torch.ones(1))  # a cosine that no token exceeds: at first none merges
        self.pruning = nn.Parameter(torch.zeros(1))  # attention that no token falls below: at first none is pruned

    def excess(self, tokens: Tokens, probe: Probe, alive: Tensor) -> Excess:
        """How far tokens, of which alive [B, N] can be seen, are beyond the thresholds."""
        metric = head_mean(probe.keys[:, :, tokens.prefix :])
        likeness = cosine(metric[:, ::2], metric[:, 1::2]).masked_fill(alive[:, None, 1::2] == 0, float("-inf"))
        score, partner = likeness.max(dim=2)
        never = torch.full_like(score, float("-inf"))
        host = 2 * partner + 1
        received = probe.received.detach() * (alive > 0)
        mean = received.sum(dim=1, keepdim=True) / (alive > 0).sum(dim=1, keepdim=True)
        return Excess(
            merging=interleave(score, never, tokens.count) - self.merging,
            pruning=self.pruning - received / mean,
            host=interleave(host, host, tokens.count),
        )

    def mask(self, tokens: Tokens, probe: Probe) -> Tokens:
        """The tokens with those that leave hidden: merged into their hosts where they can be, or else pruned.

        alive is 0 or 1 in value and has the gradient of the probability to stay. The living come first, so that the
        next block divides them into A and B as it does at inference.
        """
        alive = torch.ones_like(tokens.size) if tokens.alive is None else tokens.alive
        excess = self.excess(tokens, probe, alive)
        index = torch.arange(tokens.count, device=alive.device)
        last = excess.larger.masked_fill(alive == 0, float("inf")).argmin(dim=1, keepdim=True)
        leaves = (excess.larger > 0) & (index != last)  # one token always stays
        merge = torch.sigmoid(excess.merging / self.config.temperature)
        stay = (1 - merge) * torch.sigmoid(-excess.pruning / self.config.temperature)
        merges = (leaves & (excess.merging > 0)) + (merge - merge.detach())
        stays = alive * (~leaves + (stay - stay.detach()))
        after = replace(merge_guests(tokens, alive * merges, excess.host), alive=stays, grid=None)
        return after.keep(stable_topk((stays > 0).float(), tokens.count))


class ThresholdSearch(Thresholds, Search):
    """Trains the thresholds of every block; the counts are the mean numbers of tokens that they leave."""

    masks = True

    @dataclass(frozen=True)
    class Config:
        """The settings of ThresholdSearch."""

        target: Annotated[float, Interval(ge=0, le=1)] = 0.5  # share of the unreduced model's MACs
        weight: Annotated[float, Ge(0)] = 10.0  # of the squared distance to it
        temperature: Temperature = 0.1

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.share = torch.tensor(1.0)  # of the tokens that stay, in the last batch of the training, with its gradient
        self.mean_share = torch.tensor(1.0)  # over about ten batches

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Mask by the thresholds, and note the share of the tokens that stay."""
        after = self.mask(tokens, probe)
        if self.training:
            before = after.alive.numel() if tokens.alive is None else tokens.alive.sum()
            self.share = after.alive.sum() / before
            self.mean_share = 0.9 * self.mean_share + 0.1 * self.share.detach()
        return after

    def kept(self, arriving: Tensor) -> Tensor:
        """The mean share of the last batches, with the gradient of the last one."""
        return arriving * (self.mean_share + (self.share - self.share.detach()))

    def penalty(self, share: Tensor) -> Tensor:
        """The squared distance to the target, for all blocks together: only the last one returns it."""
        last = self.setup.stage == self.setup.stages - 1
        return self.config.weight * (share - self.config.target) ** 2 if last else share * 0


@register(
    "ltmp",
    title="Learned Thresholds Merging and Pruning (LTMP)",
    family="merging",
    paper="Learned Thresholds Token Merging and Pruning for Vision Transformers",
    venue="TMLR",
    year=2023,
    url="https://arxiv.org/abs/2307.10780",
    differs="every image loses exactly N - K tokens, those farthest beyond a threshold, where the paper's thresholds "
    "decide how many; fine-tuning trains the model too, and draws counts to K (the search draws MACs to a target); the "
    "class token is in neither set; attention received is in units of its mean, so that the second threshold does not "
    "depend on N; a token that would merge into a pruned one is pruned too",
)
class LTMP(Thresholds):
    """Merges or prunes the N - K tokens that are farthest beyond the block's thresholds."""

    search = ThresholdSearch

    @dataclass(frozen=True)
    class Config:
        """The settings of LTMP."""

        temperature: Temperature = 0.1
        rate_weight: Annotated[float, Ge(0)] = 10.0

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Mask by the thresholds in training; at inference remove N - K tokens."""
        if not self.training:
            return self.remove(tokens, probe)
        after = self.mask(tokens, probe)
        off = (after.alive.mean(dim=1) - self.setup.k / self.setup.patches).square().mean() / self.setup.stages
        rate = tokens.aux.get("keep_rate", 0) + self.config.rate_weight * off
        return replace(after, aux={**tokens.aux, "keep_rate": rate})

    def remove(self, tokens: Tokens, probe: Probe) -> Tokens:
        """At inference: the K tokens least beyond the thresholds, with what merges into them."""
        k = self.setup.k
        excess = self.excess(tokens, probe, torch.ones_like(tokens.size))
        kept = stable_topk(-excess.larger, k).sort(dim=1).values
        clusters = torch.arange(k, device=kept.device).expand_as(kept)
        # Each kept token has one of the clusters 0 to k - 1. Pruned tokens go to cluster k, which is then dropped.
        own = torch.full_like(excess.host, k).scatter(1, kept, clusters)  # [B, N]; k for the tokens that leave
        merges = (excess.merging > 0) | (excess.merging >= excess.pruning)
        of_host = torch.where(merges, own.gather(1, excess.host), k)
        assignment = torch.where(own < k, own, of_host)
        return tokens.merge(assignment, k + 1).keep(clusters)

    def macs(self) -> int:
        """The cosines between A and B of head-averaged keys."""
        n = self.setup.tokens
        return (n - n // 2) * (n // 2) * (self.setup.width // self.setup.heads)


def interleave(even: Tensor, odd: Tensor, n: int) -> Tensor:
    """Values of the even tokens [B, A] and those of the odd ones (and one too many, if n is odd) in turn: [B, n]."""
    return torch.stack([even, odd], dim=2).flatten(1)[:, :n]


def merge_guests(tokens: Tokens, merges: Tensor, host: Tensor) -> Tokens:
    """Each host as the size-weighted mean of itself and of the tokens that merge into it; merges [B, N] is 0 or 1."""
    guests = (merges * tokens.size)[:, :, None] * F.one_hot(host, tokens.count)  # [B, from, to]
    size = tokens.size + guests.sum(dim=1)
    share = (guests / size[:, None, :]).transpose(1, 2).to(tokens.x.dtype)
    own = (tokens.size / size)[:, :, None].to(tokens.x.dtype)
    x = torch.cat([tokens.x[:, : tokens.prefix], own * tokens.body + share @ tokens.body], dim=1)
    return replace(tokens, x=x, size=size.detach())
