"""Tokens: the one value that flows through the blocks.

Shapes: B images, P prefix tokens (class, distillation, registers), N body tokens (patches or what became of
them), K body tokens after a step, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tpbench.kernels.segments import segment_mean, segment_sum

__all__ = ["Tokens", "cosine", "rows", "segment_mean", "segment_sum", "spread", "stable_topk"]


@dataclass
class Tokens:
    """Prefix and body tokens of a batch, with what each body token stands for.

    x      [B, P + N, C]  prefix tokens first; they are never reduced
    prefix P
    size   [B, N] float32, patches each body token stands for (1 after pruning, more after merging)
    grid   (rows, columns) while the body tokens lie on a full grid in row order, else None
    alive  [B, N] in [0, 1] or None: padding, or a differentiable keep decision; 0 is invisible to the others.
           Every image keeps at least one token alive: attention and average pooling divide by what is alive.
    aux    loss terms met on the way, by name: scalars
    carry  [B, N] values of a method's own that stay with their tokens, by name, until tokens merge
    key_weight  [B, N] how often proportional attention counts each body token as a key; None: as often as its size
    """

    x: Tensor
    prefix: int
    size: Tensor
    grid: tuple[int, int] | None = None
    alive: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)
    key_weight: Tensor | None = None

    @property
    def body(self) -> Tensor:
        """[B, N, C]"""
        return self.x[:, self.prefix :]

    @property
    def count(self) -> int:
        """N: body tokens per image."""
        return self.x.shape[1] - self.prefix

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens with other values x [B, P + N, C]; several times faster than `replace`, at every block."""
        return Tokens(x, self.prefix, self.size, self.grid, self.alive, self.aux, self.carry, self.key_weight)

    def with_body(self, body: Tensor, size: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """The prefix kept, the body replaced by body [B, K, C], each token standing for size [B, K] patches."""
        x = torch.cat([self.x[:, : self.prefix], body], dim=1)
        return replace(self, x=x, size=size, grid=grid, alive=None, carry={}, key_weight=None)

    def keep(self, index: Tensor, size: Tensor | None = None) -> Tokens:
        """Prune: keep the body tokens index [B, K] int64, in that order.

        size [B, K] says what the kept tokens stand for when the others were absorbed; by default each keeps its own.
        """
        prefix = torch.arange(self.prefix, device=index.device).expand(index.shape[0], -1)
        x = rows(self.x, torch.cat([prefix, index + self.prefix], dim=1))
        alive = None if self.alive is None else self.alive.gather(1, index)
        key_weight = None if self.key_weight is None else self.key_weight.gather(1, index)
        size = self.size.gather(1, index) if size is None else size
        carry = {name: value.gather(1, index) for name, value in self.carry.items()}
        return replace(self, x=x, size=size, grid=None, alive=alive, carry=carry, key_weight=key_weight)

    def merge(self, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tokens:
        """Pool: body tokens with the same assignment [B, N] int64 in [0, k) become their weighted mean, sizes added.

        weight [B, N] >= 0 defaults to the sizes. Every one of the k clusters needs a member; where the weights of
        all members are 0, the members count equally.
        """
        weight = self.size if weight is None else weight
        body = segment_mean(self.body, weight, assignment, k)
        return self.with_body(body, segment_sum(self.size, assignment, k))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, C], index [B, K] int64 -> [B, K, C]: copies whole rows, several times faster on a CPU than gather."""
    batch, n, width = x.shape
    flat = index + torch.arange(batch, device=index.device)[:, None] * n
    return x.reshape(batch * n, width).index_select(0, flat.reshape(-1)).view(batch, -1, width)


def stable_topk(score: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest of score [B, N], largest first; ties go to the lower index on every device.

    NaN counts as largest.
    """
    return torch.argsort(score, dim=1, descending=True, stable=True)[:, :k]


@torch.no_grad()
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of all pairs: a [B, N, C], b [B, M, C] -> [B, N, M].

    In float32 or better and without a gradient, whatever the dtype of a and b and under autocast too: in bfloat16 many
    of a token's candidates round to the same similarity.
    """
    exact = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        a = F.normalize(a.to(exact), dim=-1)
        b = F.normalize(b.to(exact), dim=-1)
        return a @ b.transpose(1, 2)


def spread(size: Tensor, share: Tensor) -> Tensor:
    """What K new tokens stand for when they are soft means of N tokens: size [B, N], share [B, K, N] -> [B, K].

    Every token's patches go to the new tokens in proportion to its part in them, so that none is lost.
    """
    part = share.detach().float()
    return (part / part.sum(dim=1, keepdim=True).clamp(min=1e-20) * size[:, None, :]).sum(dim=2)
