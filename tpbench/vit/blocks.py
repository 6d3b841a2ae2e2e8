"""timm's blocks over Tokens, each with at most one reducer."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tpbench.downsampler import Downsampler, Needs, Probe, Site
from tpbench.kernels import attention as kernels
from tpbench.tokens import Tokens
from tpbench.vit.adoption import adopt
from tpbench.vit.attention import ProbedAttention
from tpbench.vit.pooling import linear_macs, pad_prefix


class Reducing:
    """A mixin for a class of timm's block: it takes and returns Tokens, and has at most one reducer.

    A subclass has `probed`, which adopts its attention, and its two branches of the residual stream.
    """

    reducer: Downsampler | None
    site: Site
    prefix: int
    weighted: bool  # whether keys count as often as the patches they stand for, or as the method says

    @classmethod
    def around(cls, block: nn.Module, reducer: Downsampler | None, site: Site, prefix: int, weighted: bool) -> Reducing:
        """Adopt a block of timm's, so that it passes Tokens and calls the reducer at its site."""
        adopted = adopt(cls, block)
        adopted.attn = cls.probed(block.attn)
        adopted.site = site
        adopted.prefix = prefix
        adopted.weighted = weighted
        adopted.reducer = reducer
        return adopted

    def forward(self, tokens: Tokens, rotation: Tensor | None = None) -> Tokens:
        """Tokens through attention and MLP, x [B, P + N, C], with the reducer at its site.

        rotation: sines and cosines by which the attention rotates queries and keys; see `attention.Probed`.
        """
        if self.reducer is None and not self.counts_keys(tokens):
            return self.unreduced(tokens, rotation)
        attended, probe = self.attend(tokens, rotation)
        branch = self.attention_branch(attended)
        tokens = tokens.with_x(tokens.x + self.drop_path1(branch))
        if self.reducer is not None and self.site is Site.MID:
            tokens = self.reducer(tokens, self.with_shift(probe, branch))
        branch = self.mlp_branch(tokens.x)
        tokens = tokens.with_x(tokens.x + self.drop_path2(branch))
        if self.reducer is not None and self.site is Site.END:
            tokens = self.reducer(tokens, self.with_shift(probe, branch))
        return tokens

    def with_shift(self, probe: Probe, branch: Tensor) -> Probe:
        """The probe with how far a branch [B, P + N, C] of the residual stream moves each body token, if needed."""
        if not self.reducer.needs & Needs.SHIFT:
            return probe
        moved = branch[:, self.prefix :].detach()
        return probe._replace(shift=moved.to(torch.promote_types(moved.dtype, torch.float32)).norm(dim=2))

    def unreduced(self, tokens: Tokens, rotation: Tensor | None) -> Tokens:
        """The same for a block without a reducer in which every key counts once: timm's steps with little overhead."""
        attended, _ = self.attn(self.norm1(tokens.x), rotation=rotation)
        x = tokens.x + self.drop_path1(self.attention_branch(attended))
        return tokens.with_x(x + self.drop_path2(self.mlp_branch(x)))

    def attend(self, tokens: Tokens, rotation: Tensor | None = None) -> tuple[Tensor, Probe]:
        """Attention over the normalised tokens, and what the reducer needs to see of it (body tokens only)."""
        x = self.norm1(tokens.x)
        needs = Needs.NONE if self.reducer is None else self.reducer.needs
        seen = needs & Needs.ATTENTION
        if tokens.alive is not None and tokens.alive.requires_grad:
            count = pad_prefix(self.key_count(tokens), tokens.prefix) if self.weighted else None
            alive = pad_prefix(tokens.alive, tokens.prefix)
            attended, probe = self.attn.masked(x, alive, count=count, needs=seen, rotation=rotation)
        else:
            bias = self.key_weight(tokens).log().to(x.dtype)[:, None, None, :] if self.counts_keys(tokens) else None
            attended, probe = self.attn(x, bias=bias, needs=seen, rotation=rotation)
        body = {
            name: None if row is None else row[:, tokens.prefix :]
            for name, row in (("cls", probe.cls), ("received", probe.received), ("own", probe.own))
        }
        return attended, probe._replace(input=x if needs & Needs.INPUT else None, **body)

    def macs(self, n: int, after: int) -> tuple[int, int]:
        """MACs of attention and MLP when n body tokens arrive and `after` go on; without the reducer's own."""
        processed = after if self.site is Site.MID else n
        return self.attn.macs(self.prefix + n), (self.prefix + processed) * linear_macs(self.mlp)

    def probe_macs(self, reducer: Downsampler) -> int:
        """Multiply-adds that only the reducer's probe costs: a class-token row, or a second pass over the scores."""
        needs = reducer.needs
        n = reducer.setup.tokens + self.prefix
        width = self.attn.width
        row = n * width if needs & Needs.CLS else 0
        twice = bool(needs & Needs.RECEIVED) and kernels.extra_pass(self.attn.proj.weight.device, n)
        return row + (n * n * width if twice else 0)

    def counts_keys(self, tokens: Tokens) -> bool:
        """Whether attention must weigh the keys: by size, or because some tokens are not alive."""
        return self.weighted or tokens.alive is not None

    def key_weight(self, tokens: Tokens) -> Tensor:
        """How often each key counts: [B, P + N] float32, 1 for the prefix."""
        weight = self.key_count(tokens)
        weight = weight if tokens.alive is None else weight * tokens.alive
        return pad_prefix(weight, tokens.prefix)

    def key_count(self, tokens: Tokens) -> Tensor:
        """How often each body token counts as a key while it is alive: [B, N] float32."""
        if not self.weighted:
            return torch.ones_like(tokens.size)
        return tokens.size if tokens.key_weight is None else tokens.key_weight


class TokenBlock(Reducing, Block):
    """timm's Block over Tokens."""

    @staticmethod
    def probed(attention: nn.Module) -> ProbedAttention:
        """Adopt timm's attention, so that it can return a probe."""
        return adopt(ProbedAttention, attention)

    def attention_branch(self, attended: Tensor) -> Tensor:
        """What attention adds to the residual stream, before its path may be dropped: [B, P + N, C]."""
        return self.ls1(attended)

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to the residual stream, before its path may be dropped: [B, P + N, C]."""
        return self.ls2(self.mlp(self.norm2(x)))
