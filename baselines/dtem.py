"""DTEM (Lee and Hong, NeurIPS 2024, https://openreview.net/forum?id=pVPyCgXv57): learn what to merge by.

A linear head on the block's normalised input gives every token an embedding for the matching alone, so that keys serve
attention alone. At inference it replaces the keys in ToMe's matching. In training merging is soft, so that the
embeddings have a gradient: the r most similar pairs are chosen by r rounds of a softmax over all pairs, each of which
lowers the chances of the pairs it took. Tokens give part of their patches to their partners and stay with the rest.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.tome import ToMe
from tpbench.downsampler import Needs, Probe, Setup
from tpbench.kernels.matching import match_halves
from tpbench.registry import register
from tpbench.tokens import Tokens, cosine, rows, stable_topk

LEAST = 1e-6  # lower limit of what is left of a token, because its logarithm is taken


def soft_pairs(similarity: Tensor, r: int, temperature: float, chance: Tensor) -> Tensor:
    """How much of each token of A goes to each of B when r pairs are taken softly: [B, A, B'], at most 1 a token of A.

    similarity [B, A, B'] is divided by the temperature; chance [B, A, B'] multiplies what the softmax gives.
    """
    logits = similarity / temperature + chance.clamp(min=LEAST).log()
    taken = torch.zeros_like(logits)
    for _ in range(r):
        share = logits.flatten(1).softmax(dim=1).view_as(logits)
        taken = taken + share
        logits = logits + torch.log1p(-share.sum(dim=2, keepdim=True).clamp(max=1 - LEAST))
    return taken / taken.sum(dim=2, keepdim=True).clamp(min=1)


@register(
    "dtem",
    title="Decoupled Token Embedding for Merging (DTEM)",
    family="merging",
    paper="Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers",
    venue="NeurIPS",
    year=2024,
    url="https://openreview.net/forum?id=pVPyCgXv57",
    differs="r follows from the schedule, as tome's; heads and model are trained together by one loss unless "
    "frozen=1; in training all tokens stay in the sequence, and a token always sees itself whole",
)
class DTEM(ToMe):
    """Merges as ToMe does, by a learned embedding; in training the merges are soft."""

    needs = Needs.INPUT

    @dataclass(frozen=True)
    class Config:
        """The settings of DTEM."""

        embedding: Annotated[int, Ge(1)] = 64  # its width
        temperature: Annotated[float, Gt(0)] = 0.1
        input_gradient: Annotated[float, Interval(ge=0, le=1)] = (
            0.1  # share of the head's gradient that reaches the input
        )
        frozen: Annotated[float, Interval(ge=0, le=1)] = 0.0  # share of the epochs that train the heads alone

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.embed = nn.Linear(setup.width, self.config.embedding)
        self.frozen_share = self.config.frozen

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Merge N - K tokens of A into B by the embedding: softly in training."""
        still = probe.input.detach()
        metric = self.embed(still + self.config.input_gradient * (probe.input - still))
        if self.training:
            return self.soft(tokens, metric)
        similarity = cosine(metric[:, ::2], metric[:, 1::2])
        return tokens.merge(match_halves(similarity, tokens.prefix, self.setup.k), self.setup.k)

    def soft(self, tokens: Tokens, metric: Tensor) -> Tokens:
        """Soft merging by a metric [B, P + N, D]: no token leaves; alive x size is what each still stands for.

        As at inference, A and B divide the tokens that arrive: the N of which most is left.
        """
        alive = torch.ones_like(tokens.size) if tokens.alive is None else tokens.alive
        order = stable_topk((tokens.size * alive).detach(), tokens.count)
        tokens = replace(tokens, alive=alive).keep(order)
        alive = tokens.alive
        position = torch.arange(self.setup.tokens, device=alive.device)
        a = position[(position + tokens.prefix) % 2 == 0]
        b = position[(position + tokens.prefix) % 2 == 1]
        with torch.autocast(alive.device.type, enabled=False):
            units = F.normalize(rows(metric[:, tokens.prefix :], order).float(), dim=-1)
            chance = alive[:, a, None] * alive[:, None, b]
            r = self.setup.tokens - self.setup.k
            share = soft_pairs(
                units[:, a] @ units[:, b].transpose(1, 2), r=r, temperature=self.config.temperature, chance=chance
            )
            mass = tokens.size * alive
            given = mass[:, a, None] * share
            own = mass[:, b, None]
            gained = given.sum(dim=1)[:, :, None]
            body = tokens.body.float()
            mean = (own * body[:, b] + given.transpose(1, 2) @ body[:, a]) / (own + gained).clamp(min=LEAST)
        x = tokens.x.index_copy(1, b + tokens.prefix, mean.to(tokens.x.dtype))
        size = tokens.size.index_add(1, b, gained[:, :, 0].detach())
        left = mass.index_add(1, a, -given.sum(dim=2)).index_add(1, b, gained[:, :, 0])
        return replace(tokens, x=x, size=size, alive=(left / size).clamp(0, 1), grid=None)

    def macs(self) -> int:
        """The embedding of all tokens, and the cosines between A and B."""
        n = self.setup.prefix + self.setup.tokens
        return n * self.setup.width * self.config.embedding + (n - n // 2) * (n // 2) * self.config.embedding
