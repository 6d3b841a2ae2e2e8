"""PPT (Wu et al., 2023, https://arxiv.org/abs/2310.01812): each image prunes or pools, as its scores suggest.

The score of a token is its class attention times the length of its value over all heads; an image's scores sum to 1.
Where they vary little no token stands out, and the most similar pairs merge, as in ToMe. Elsewhere the tokens with the
lowest scores are dropped. Both leave K tokens.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from baselines.tome import ToMe
from tpbench.downsampler import Needs, Probe, Setup
from tpbench.registry import register
from tpbench.tokens import Tokens, stable_topk


def choose_by_image(chosen: Tensor, first: Tokens, second: Tokens) -> Tokens:
    """Combine two reductions of one batch to K tokens: `first` for the chosen images [B], `second` for the others."""

    def picked(a: Tensor, b: Tensor) -> Tensor:
        other_dimensions = [1] * (a.dim() - 1)
        return torch.where(chosen.view(-1, *other_dimensions), a, b)

    position = None
    if first.position is not None:
        position = picked(first.position, second.position)
    provenance = first.provenance
    if provenance is not None:
        owner = picked(provenance.owner, second.provenance.owner)
        provenance = replace(provenance, owner=owner, patch=picked(provenance.patch, second.provenance.patch))
    x = picked(first.x, second.x)
    return replace(first, x=x, size=picked(first.size, second.size), position=position, provenance=provenance)


@register(
    "ppt",
    title="PPT, token pruning and pooling",
    family="merging",
    paper="PPT: Token Pruning and Pooling for Efficient Vision Transformers",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2310.01812",
    differs="the paper's threshold on the variance is for 196 patches: it is multiplied by (196 / patches)^2, since "
    "scores sum to 1; r follows from the schedule; later attention counts sizes, as ToMe's, unless proportional=False",
)
class PPT(ToMe):
    """Prunes where the scores of an image differ, and merges where they do not."""

    needs = Needs.CLS | Needs.KEYS | Needs.VALUES

    @dataclass(frozen=True)
    class Config:
        """The settings of PPT."""

        threshold: Annotated[float, Ge(0)] = 7e-5  # variance of the scores, in a model of 196 patches
        proportional: bool = True

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        self.weighted_attention = self.config.proportional

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:
        """Merge and prune every image to K tokens, and take the merged tokens where its scores vary little."""
        score = self.scores(tokens, probe)
        pooled = super().forward(tokens, probe)
        pruned = tokens.keep(stable_topk(score, self.setup.k).sort(dim=1).values)
        pools = score.var(dim=1) < self.config.threshold * (196 / self.setup.patches) ** 2
        return choose_by_image(pools, pooled, pruned)

    @staticmethod
    def scores(tokens: Tokens, probe: Probe) -> Tensor:
        """The scores of the body tokens [B, N], which sum to 1 in every image."""
        length = probe.values[:, :, tokens.prefix :].detach().float().square().sum(dim=(1, 3)).sqrt()
        score = probe.cls * length
        return score / score.sum(dim=1, keepdim=True)
