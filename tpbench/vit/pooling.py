"""Pooling tokens that stand for several patches: each token counts as often as its patches."""

from __future__ import annotations

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over tokens: x [B, N, C], weight [B, N] >= 0 -> [B, C]."""
    share = (weight / weight.sum(dim=1, keepdim=True)).to(x.dtype)
    return (share[:, :, None] * x).sum(dim=1)


class WeightedPool(AttentionPoolLatent):
    """timm's attention pooling, in which a token can count several times. Without weights it is timm's own code."""

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [B, N, C], weight [B, N] float32 >= 0 or None -> [B, C]: log weight is added to the scores of a token."""
        if weight is None:
            return super().forward(x)
        if weight.requires_grad:  # the logarithm's gradient is not finite where a weight is 0
            return self.projected(self.attend(x, weight))
        return super().forward(x, attn_mask=weight.log().to(x.dtype)[:, None, None, :])

    def attend(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same attention with a gradient to the weights: exp(scores) is multiplied by them. [B, latents, C]"""
        batch, n, _ = x.shape
        q = self.q(self.latent.expand(batch, -1, -1)).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).reshape(batch, n, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (self.q_norm(q) @ self.k_norm(k).transpose(-2, -1)).float() * self.scale
        weight = weight[:, None, None, :]
        highest = scores.detach().masked_fill(weight == 0, float("-inf")).amax(dim=-1, keepdim=True)
        counted = (scores - highest).clamp(max=30).exp() * weight  # hidden scores may lie far above: no overflow
        attention = counted / counted.sum(dim=-1, keepdim=True)
        return (attention.to(v.dtype) @ v).transpose(1, 2).flatten(2)

    def projected(self, x: Tensor) -> Tensor:
        """What timm does after the attention: [B, latents, C] -> [B, C]."""
        x = self.proj_drop(self.proj(x))
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool == "token" else x.mean(dim=1)

    def macs(self, n: int) -> int:
        """Keys and values of n tokens, what every latent query costs, and its products with all keys and values."""
        keys = linear_macs(self.kv)
        return n * keys + self.latent_len * (linear_macs(self) - keys + 2 * n * self.num_heads * self.head_dim)


def pad_prefix(weight: Tensor, prefix: int) -> Tensor:
    """Weights [B, N] of the body tokens -> [B, P + N] with 1 for each prefix token."""
    return F.pad(weight, (prefix, 0), value=1.0)


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers in a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
