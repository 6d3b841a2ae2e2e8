"""timm's Eva family over Tokens: EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT and their like.

What differs from timm's plain vision transformer: queries and keys may be rotated by the tokens' positions, projections
and LayerScale are written differently, and attention pooling reads the prefix too.
"""

from __future__ import annotations

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

from tpbench.vit.adoption import adopt
from tpbench.vit.attention import Probed
from tpbench.vit.blocks import Reducing
from tpbench.vit.model import TokenModel


class RotaryProbed(Probed):
    """A mixin for attention that rotates the queries and keys of its body tokens."""

    def rotated(self, q: Tensor, k: Tensor, v: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and k [B, H, P + N, D] rotated by position, in v's dtype."""
        if rotation is None:
            return q, k
        return self.rotate(q, rotation).type_as(v), self.rotate(k, rotation).type_as(v)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """x [B, H, P + N, D] with its body tokens rotated; the prefix stays as it is."""
        prefix = x[:, :, : self.num_prefix_tokens]
        body = x[:, :, self.num_prefix_tokens :]
        return torch.cat([prefix, apply_rot_embed_cat(body, rotation, half=self.rotate_half)], dim=2)


class ProbedEvaAttention(RotaryProbed, EvaAttention):
    """timm's EvaAttention, which can also return a probe."""

    def plain(self, x: Tensor, bias: Tensor | None, rotation: Tensor | None) -> Tensor:
        """timm's own forward: [B, N, C] -> [B, N, C]."""
        return EvaAttention.forward(self, x, rope=rotation, attn_mask=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> q, k, v [B, H, N, D], normalised and not yet rotated."""
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in self.projections(x))
        return self.q_norm(q), self.k_norm(k), v

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> queries, keys and values [B, N, H D]; keys have no bias."""
        if self.qkv is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.q_bias is None:
            return self.qkv(x).chunk(3, dim=2)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if self.qkv_bias_separate:
            return (self.qkv(x) + bias).chunk(3, dim=2)
        return F.linear(x, self.qkv.weight, bias).chunk(3, dim=2)


class ProbedRopeAttention(RotaryProbed, AttentionRope):
    """timm's AttentionRope, which can also return a probe. Heads that share keys and values get copies of them."""

    def plain(self, x: Tensor, bias: Tensor | None, rotation: Tensor | None) -> Tensor:
        """timm's own forward: [B, N, C] -> [B, N, C]."""
        return AttentionRope.forward(self, x, rope=rotation, attn_mask=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> q, k, v [B, H, N, D], normalised and not yet rotated."""
        parts = (
            self.qkv(x).chunk(3, dim=2) if self.qkv is not None else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        q, k, v = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        k = self.k_norm(k)
        if self.num_kv_groups > 1:
            k = k.repeat_interleave(self.num_kv_groups, dim=1)
            v = v.repeat_interleave(self.num_kv_groups, dim=1)
        return self.q_norm(q), k, v


class TokenEvaBlock(Reducing, EvaBlock):
    """timm's EvaBlock over Tokens."""

    @staticmethod
    def probed(attention: nn.Module) -> RotaryProbed:
        """Adopt either of timm's attentions with rotary embedding, so that it can return a probe."""
        kind = ProbedEvaAttention if type(attention) is EvaAttention else ProbedRopeAttention
        return adopt(kind, attention)

    def attention_branch(self, attended: Tensor) -> Tensor:
        """What attention adds to the residual stream, before its path may be dropped: [B, P + N, C]."""
        return attended if self.gamma_1 is None else self.gamma_1 * attended

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to the residual stream, before its path may be dropped: [B, P + N, C]."""
        x = self.mlp(self.norm2(x))
        return x if self.gamma_2 is None else self.gamma_2 * x


class TokenEva(TokenModel, Eva, of=Eva):
    """timm's Eva over Tokens."""

    block = TokenEvaBlock

    @property
    def pools_prefix(self) -> bool:
        """Whether prefix tokens are pooled with the others."""
        return self.attn_pool is not None

    def positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedded patches -> tokens [B, P + M, C] with their position embedding, and the rotation."""
        return self._pos_embed(patches)
