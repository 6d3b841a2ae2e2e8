"""timm's attention, which can also return what a reducer needs to see of it."""

from __future__ import annotations

from timm.layers import Attention
from torch import Tensor, nn

from tpbench.downsampler import Needs, Probe
from tpbench.kernels import attention as kernels
from tpbench.vit.pooling import linear_macs

NO_PROBE = Probe()


class Probed:
    """A mixin for a class of timm's attention: it also returns what a reducer needs. Without needs, timm's code runs.

    A subclass has `plain`, timm's forward, and `project`. If the model has a rotary embedding, rotation holds the sines
    and cosines for the queries and keys of the body tokens: [N, 2 D], [B, 1, N, 2 D] or [B, H, N, 2 D].
    """

    def forward(
        self, x: Tensor, bias: Tensor | None = None, needs: Needs = Needs.NONE, rotation: Tensor | None = None
    ) -> tuple[Tensor, Probe]:
        """x [B, P + N, C], bias [B, 1, 1, P + N] for the scores or None -> the same shape and a Probe of all tokens."""
        if not needs:
            return self.plain(x, bias, rotation), NO_PROBE
        q, keys, v = self.project(x)
        q, k = self.rotated(q, keys, v=v, rotation=rotation)
        drop = self.attn_drop.p if self.training else 0.0
        cls = kernels.class_attention(q, k, bias=bias, scale=self.scale) if needs & Needs.CLS else None
        received = None
        own = None
        if needs & Needs.RECEIVED:
            out, received, own = kernels.attention_with_received(q, k, v, bias=bias, scale=self.scale, dropout=drop)
        else:
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=self.scale)
        probe = self.probe(q, k, keys=keys, v=v, needs=needs)
        return self.finish(x, out), probe._replace(cls=cls, received=received, own=own)

    def masked(
        self, x: Tensor, alive: Tensor, count: Tensor | None, needs: Needs, rotation: Tensor | None = None
    ) -> tuple[Tensor, Probe]:
        """Attention in which key j counts alive x count [B, P + N] times, with a gradient to alive; and its Probe."""
        q, keys, v = self.project(x)
        q, k = self.rotated(q, keys, v=v, rotation=rotation)
        out, attention = kernels.masked_attention(q, k, v, alive=alive, scale=self.scale, count=count)
        cls = attention[:, :, 0].mean(dim=1) if needs & Needs.CLS else None
        received = None
        own = None
        if needs & Needs.RECEIVED:
            looks = alive.detach()[:, None, :, None]  # the dead ask nothing
            received = (attention * looks).sum(dim=2).mean(dim=1)
            own = attention.diagonal(dim1=2, dim2=3).mean(dim=1)
        probe = self.probe(q, k, keys=keys, v=v, needs=needs)
        return self.finish(x, out), probe._replace(cls=cls, received=received, own=own)

    def probe(self, q: Tensor, k: Tensor, keys: Tensor, v: Tensor, needs: Needs) -> Probe:
        """The needed ones of q, k, keys, v [B, H, N, D]; keys are k before they are rotated."""
        return Probe(
            keys=keys if needs & Needs.KEYS else None,
            values=v if needs & Needs.VALUES else None,
            queries=q * self.scale if needs & Needs.QUERIES else None,
            rotated_keys=k if needs & Needs.QUERIES else None,
        )

    def rotated(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,  # noqa: ARG002
        rotation: Tensor | None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """q and k after their rotation, in v's dtype. Here they stay as they are: plain attention has no rotation."""
        return q, k

    def macs(self, n: int) -> int:
        """Multiply-adds of n tokens: projections, and query-key and attention-value products of all pairs."""
        return n * linear_macs(self) + 2 * n * n * self.width

    @property
    def width(self) -> int:
        """The width of all heads together."""
        return self.num_heads * self.head_dim

    def finish(self, x: Tensor, out: Tensor) -> Tensor:
        """Heads joined, normalised, gated and projected: [B, H, N, D] -> [B, N, C]."""
        out = self.norm(out.transpose(1, 2).flatten(2))
        gate = getattr(self, "gate", None)  # timm >= 1.0.26
        out = out if gate is None else out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class ProbedAttention(Probed, Attention):
    """timm's Attention, which can also return a probe."""

    def plain(self, x: Tensor, bias: Tensor | None, rotation: Tensor | None) -> Tensor:  # noqa: ARG002
        """timm's own forward: [B, N, C] -> [B, N, C]."""
        return Attention.forward(self, x) if bias is None else Attention.forward(self, x, attn_mask=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> q, k, v [B, H, N, D], normalised and not yet rotated."""
        batch, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v
