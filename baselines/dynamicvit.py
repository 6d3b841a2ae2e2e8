"""DynamicViT (Rao et al., NeurIPS 2021, https://arxiv.org/abs/2106.02034): predictors learn which tokens to keep.

In training nothing is removed: hard Gumbel-softmax decisions mask the attention, with a gradient. If every token of an
image is dropped, the likeliest one is kept, since average pooling needs one. At inference the K tokens with the highest
probability of being kept stay. There are three further losses: the keep rate of every stage, and the distances to the
logits and to the tokens of the frozen unreduced model. The backbone is frozen first and learns slowly later.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from tpbench.downsampler import Downsampler, Output, Probe, Setup
from tpbench.errors import UsageError
from tpbench.registry import register
from tpbench.tokens import Tokens, stable_topk


@register(
    "dynamicvit",
    title="DynamicViT",
    family="pruning",
    paper="DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
    venue="NeurIPS",
    year=2021,
    url="https://arxiv.org/abs/2106.02034",
    differs="reduces where the recipe says, not before the block; KL(teacher || student), as the logits' distillation",
)
class DynamicViT(Downsampler):
    """Keeps the K tokens that a learned predictor finds most useful; in training the others are masked."""

    teacher = True
    backbone_lr_scale = 0.01
    frozen_share = 1 / 6  # the first 5 of 30 epochs

    @dataclass(frozen=True)
    class Config:
        """The settings of DynamicViT."""

        rate_weight: Annotated[float, Ge(0)] = 2.0
        logits_weight: Annotated[float, Ge(0)] = 0.5
        tokens_weight: Annotated[float, Ge(0)] = 0.5

    def __init__(self, setup: Setup, config: Config | None = None):
        super().__init__(setup, config)
        c = setup.width
        self.local = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(c, c // 2),
            nn.GELU(),
            nn.Linear(c // 2, c // 4),
            nn.GELU(),
            nn.Linear(c // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, tokens: Tokens, probe: Probe) -> Tokens:  # noqa: ARG002
        """Mask what the predictor drops in training; at inference keep the K likeliest."""
        alive = torch.ones_like(tokens.size) if tokens.alive is None else tokens.alive
        scores = self.predict(tokens.body, alive)
        if not self.training:
            return self.prune(tokens, scores[..., 0])
        soft = F.gumbel_softmax(scores.float())
        keep = soft[..., 0]
        likeliest = keep.masked_fill(alive == 0, -1).argmax(dim=1, keepdim=True)
        stays = (keep > soft[..., 1]) | (torch.arange(tokens.count, device=keep.device) == likeliest)
        kept = alive * (stays + (keep - keep.detach()))  # exactly 0 or 1
        off = (kept.mean(dim=1) - self.setup.k / self.setup.patches).square().mean() / self.setup.stages
        rate = tokens.aux.get("keep_rate", 0) + self.config.rate_weight * off
        tokens = self.before_masking(tokens, alive, kept)
        return replace(tokens, alive=kept, grid=None, aux={**tokens.aux, "keep_rate": rate})

    def prune(self, tokens: Tokens, score: Tensor) -> Tokens:
        """At inference: the K tokens with the highest score [B, N], in their order."""
        return tokens.keep(stable_topk(score, self.setup.k).sort(dim=1).values)

    def before_masking(self, tokens: Tokens, alive: Tensor, kept: Tensor) -> Tokens:  # noqa: ARG002
        """In training: what to do with the tokens that are alive [B, N] but not kept [B, N] before they are masked.

        Here nothing; a subclass may first merge them into kept ones.
        """
        return tokens

    def predict(self, body: Tensor, alive: Tensor) -> Tensor:
        """Log-probabilities of (keep, drop): body [B, N, C], alive [B, N] -> [B, N, 2] (eqs. 2-5)."""
        own, shared = self.local(body).chunk(2, dim=-1)
        weight = (alive / alive.sum(dim=1, keepdim=True).clamp(min=1e-6)).to(shared.dtype)[:, :, None]
        shared = (shared * weight).sum(dim=1, keepdim=True).expand_as(own)
        return self.decide(torch.cat([own, shared], dim=-1))

    def objective(self, out: Output, teacher: Output) -> dict[str, Tensor]:
        """The distillation losses: KL divergence of the logits, squared distance of the living tokens.

        Raises UsageError for the output of a model in evaluation mode, where tokens are gone.
        """
        if out.tokens.alive is None:
            raise UsageError("these losses compare masked tokens, which only a model in training has: call train()")
        logits = F.kl_div(
            F.log_softmax(out.logits.float(), dim=-1),
            F.log_softmax(teacher.logits.float(), dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        kept = out.tokens.alive.detach()
        off = (out.tokens.body.float() - teacher.tokens.body.float()).square().mean(dim=-1)
        features = (off * kept).sum() / kept.sum().clamp(min=1)
        return {
            "teacher_logits": self.config.logits_weight * logits,
            "teacher_tokens": self.config.tokens_weight * features,
        }

    def macs(self) -> int:
        """Those of the predictor's linear layers on N tokens."""
        c = self.setup.width
        return self.setup.tokens * (c * c + c * (c // 2) + (c // 2) * (c // 4) + (c // 4) * 2)
