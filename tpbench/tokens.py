"""Tokens: the one value that flows through the blocks.

Shapes: B images, P prefix tokens (class, distillation, registers), N body tokens (patches or what became of
them), K body tokens after a step, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tpbench.errors import UnsupportedModel, UsageError
from tpbench.kernels.segments import segment_mean, segment_sum
from tpbench.provenance import DROPPED, Provenance

__all__ = ["Tokens", "cosine", "parts", "rows", "segment_mean", "segment_sum", "spread", "stable_topk"]


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
    position    [B, N, 2] float32, row and column of each body token on the patch grid, where the model needs them
    provenance  which input patches each body token stands for, if it is tracked
    """

    x: Tensor
    prefix: int
    size: Tensor
    grid: tuple[int, int] | None = None
    alive: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)
    key_weight: Tensor | None = None
    position: Tensor | None = None
    provenance: Provenance | None = None

    @property
    def body(self) -> Tensor:
        """[B, N, C]"""
        return self.x[:, self.prefix :]

    @property
    def count(self) -> int:
        """N: body tokens per image."""
        return self.x.shape[1] - self.prefix

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens with other values x [B, P + N, C]; several times faster than `dataclasses.replace`."""
        return Tokens(
            x,
            prefix=self.prefix,
            size=self.size,
            grid=self.grid,
            alive=self.alive,
            aux=self.aux,
            carry=self.carry,
            key_weight=self.key_weight,
            position=self.position,
            provenance=self.provenance,
        )

    @property
    def followed(self) -> bool:
        """Whether positions or provenance are tracked: then a method must tell `with_body` where its tokens go."""
        return self.position is not None or self.provenance is not None

    def with_body(
        self,
        body: Tensor,
        size: Tensor,
        grid: tuple[int, int] | None = None,
        *,
        assignment: Tensor | None = None,
        share: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tokens:
        """The same prefix with a new body [B, K, C], each token of which stands for size [B, K] patches.

        assignment [B, N] int64 in [0, K) says which new token each old one went into, or share [B, K, N] >= 0 how much
        of each old token is in each new one. New tokens lie where the patches they stand for lie on average, unless
        position [B, K, 2] says otherwise. Without any of the three the new tokens have no provenance, and a model
        that needs positions raises UnsupportedModel.
        """
        if self.position is not None and position is None:
            position = self._mean_position(assignment, share, size.shape[1])
        x = torch.cat([self.x[:, : self.prefix], body], dim=1)
        return replace(
            self,
            x=x,
            size=size,
            grid=grid,
            alive=None,
            carry={},
            key_weight=None,
            position=position,
            provenance=self._regrouped(assignment, share, size.shape[1]),
        )

    def _mean_position(self, assignment: Tensor | None, share: Tensor | None, k: int) -> Tensor:
        """Where k new tokens lie: [B, k, 2], the mean position of the patches that each stands for."""
        if assignment is not None:
            return segment_mean(self.position, self.size, assignment, k)
        if share is None:
            raise UnsupportedModel(
                "the method does not say which tokens its new ones are made of, but a model with rotary position "
                "embedding needs their positions"
            )
        part = parts(self.size, share).clamp(min=1e-20)
        part = part / part.sum(dim=2, keepdim=True)
        return torch.stack([(part * along[:, None]).sum(dim=2) for along in self.position.unbind(2)], dim=2)

    def _regrouped(self, assignment: Tensor | None, share: Tensor | None, k: int) -> Provenance | None:
        if self.provenance is None:
            return None
        if assignment is not None:
            return self.provenance.merge(assignment, k)
        return None if share is None else self.provenance.mix(share)

    def keep(self, index: Tensor, size: Tensor | None = None, assignment: Tensor | None = None) -> Tokens:
        """Prune: keep the body tokens index [B, K] int64, in that order.

        assignment [B, N] int64 in [0, K) says which kept token absorbs each token; by default the others are dropped.
        size [B, K] says what the kept tokens stand for; by default what they have absorbed, or each its own.
        """
        prefix = torch.arange(self.prefix, device=index.device).expand(index.shape[0], -1)
        if size is None:
            absorbs = assignment is not None
            size = segment_sum(self.size, assignment, index.shape[1]) if absorbs else self.size.gather(1, index)
        return replace(
            self,
            x=rows(self.x, torch.cat([prefix, index + self.prefix], dim=1)),
            size=size,
            grid=None,
            alive=None if self.alive is None else self.alive.gather(1, index),
            carry={name: value.gather(1, index) for name, value in self.carry.items()},
            key_weight=None if self.key_weight is None else self.key_weight.gather(1, index),
            position=None if self.position is None else rows(self.position, index),
            provenance=None if self.provenance is None else self.provenance.keep(index, assignment),
        )

    def merge(self, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tokens:
        """Pool: body tokens with the same assignment [B, N] int64 in [0, k) become their weighted mean, sizes added.

        weight [B, N] >= 0 defaults to the sizes. Every one of the k clusters needs a member; where the weights of
        all members are 0, the members count equally.
        """
        weight = self.size if weight is None else weight
        body = segment_mean(self.body, weight, assignment, k)
        return self.with_body(body, segment_sum(self.size, assignment, k), assignment=assignment)

    def unmerge(self, dropped: Literal["nearest", "zero"] = "nearest") -> Tensor:
        """A vector for every input patch, in row order: [B, M, C].

        A patch that was kept or merged has the vector of the token that stands for it. One that was dropped has that
        of the nearest patch left on the grid, or 0. Soft methods give each patch the token that has most of it.
        Raises UsageError for tokens without provenance.
        """
        if self.provenance is None:
            raise UsageError(
                "the tokens do not say which patches they stand for: call forward_tokens(images, provenance=True) "
                "with a method that says where its tokens go"
            )
        known = self.provenance.without_dead(self.alive)
        if dropped == "nearest":
            return rows(self.body, known.nearest_owner())
        dense = rows(self.body, known.owner.clamp(min=0))
        return dense * (known.owner != DROPPED)[:, :, None]


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
    """The patches that each of K soft means of N tokens stands for: size [B, N], share [B, K, N] -> [B, K].

    Every token's patches go to the new tokens in proportion to its part in them, so that none is lost.
    """
    return parts(size, share).sum(dim=2)


def parts(size: Tensor, share: Tensor) -> Tensor:
    """The patches that each new token takes from each old one: size [B, N], share [B, K, N] -> [B, K, N]."""
    part = share.detach().float()
    return part / part.sum(dim=1, keepdim=True).clamp(min=1e-20) * size[:, None, :]
