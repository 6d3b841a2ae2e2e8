"""Provenance: which input patches each token stands for, followed through every reduction.

Shapes: B images, M input patches, N body tokens, K body tokens after a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

DROPPED = -1  # the owner of a patch that was dropped
MERGED = -1  # the patch of a token that is not a single input patch any more


@dataclass(frozen=True)
class Provenance:
    """What became of the input patches.

    grid                rows and columns of the input patches
    owner [B, M] int64  the body token that each input patch has gone into; DROPPED if no token stands for it
    patch [B, N] int64  the one input patch that each body token comes from; MERGED if it comes from several
    exact               False if only the strongest part of a soft assignment was followed
    """

    grid: tuple[int, int]
    owner: Tensor
    patch: Tensor
    exact: bool = True

    @classmethod
    def of_patches(cls, batch: int, grid: tuple[int, int], device: torch.device) -> Provenance:
        """Every body token is its own patch."""
        every = torch.arange(grid[0] * grid[1], device=device).expand(batch, -1)
        return cls(grid=grid, owner=every, patch=every)

    def keep(self, index: Tensor, assignment: Tensor | None = None) -> Provenance:
        """After the body tokens index [B, K] were kept.

        assignment [B, N] int64 in [0, K) says which kept token absorbed each token; None: the others were dropped.
        """
        if assignment is None:
            assignment = places(index, self.patch.shape[1])
        return replace(self, owner=self._moved(assignment), patch=self.patch.gather(1, index))

    def merge(self, assignment: Tensor, k: int) -> Provenance:
        """After tokens with the same assignment [B, N] int64 in [0, k) became one; a token alone keeps its patch."""
        members = assignment.new_zeros(assignment.shape[0], k).scatter_add_(1, assignment, torch.ones_like(assignment))
        patch = assignment.new_zeros(assignment.shape[0], k).scatter_add_(1, assignment, self.patch)
        return replace(self, owner=self._moved(assignment), patch=torch.where(members == 1, patch, MERGED))

    def mix(self, share: Tensor) -> Provenance:
        """After every new token became a mean of all, weighted by share [B, K, N]: the strongest part counts."""
        patch = torch.full(share.shape[:2], MERGED, device=share.device)
        return replace(self, owner=self._moved(share.argmax(dim=1)), patch=patch, exact=False)

    def without_dead(self, alive: Tensor | None) -> Provenance:
        """The same with the patches of dead tokens dropped. alive [B, N]: 0 for dead tokens; None: all are alive."""
        if alive is None:
            return self
        own_place = torch.arange(alive.shape[1], device=alive.device)
        place = torch.where(alive > 0, own_place, DROPPED)  # [B, N]: living tokens stay, dead ones are dropped
        return replace(self, owner=self._moved(place), patch=torch.where(alive > 0, self.patch, MERGED))

    def nearest_owner(self) -> Tensor:
        """The owner of each patch, or for a dropped patch the owner of the nearest patch that has one: [B, M].

        Distances are between the centres of patches; among equally near patches the first in row order counts.
        """
        place = on_grid(self.grid, self.owner.device)
        apart = torch.cdist(place, place).expand(self.owner.shape[0], -1, -1)
        apart = apart.masked_fill((self.owner == DROPPED)[:, None, :], float("inf"))
        return self.owner.gather(1, apart.argmin(dim=2))

    def _moved(self, to: Tensor) -> Tensor:
        """The owners when token i goes to place to[:, i], [B, N]."""
        return torch.where(self.owner == DROPPED, DROPPED, to.gather(1, self.owner.clamp(min=0)))


def on_grid(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Row and column of every place of a grid, in row order: [places, 2] float32."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def places(index: Tensor, n: int) -> Tensor:
    """The first place of each of n tokens in index [B, K]: [B, n] int64, DROPPED for those that are not there."""
    batch, k = index.shape
    place = torch.arange(k, device=index.device).expand(batch, -1)
    first = index.new_full((batch, n), k).scatter_reduce(1, index, place, "amin")
    return torch.where(first < k, first, DROPPED)
