"""Rotary position embedding of tokens that no longer lie on the grid: the rotation follows from carried positions.

Positions are rows and columns of the patch grid, fractional after merging. While nothing is reduced timm's own table is
used; computed at whole positions a rotation equals the table's row.
Shapes: B images, N tokens, D head width; a rotation holds sines and cosines.
"""

from __future__ import annotations

import math

import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torch import Tensor, nn

from tpbench.errors import UsageError

ROTARY = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed)


class Rotations:
    """The rotations of the body tokens' queries and keys in the blocks of one forward pass."""

    def __init__(self, rope: nn.Module, table: Tensor, grid: tuple[int, int], position: Tensor):
        self.rope = rope
        self.table = table  # timm's, for the positions of all patches
        self.grid = grid
        self.unreduced = position
        self.latest = position
        self.rotation = table

    def of(self, position: Tensor, block: int) -> Tensor:
        """The rotation of tokens at position [B, N, 2] in a block: timm's table until a reducer has moved them.

        [N, 2 D] or [H, N, 2 D] as in the table, [B, 1, N, 2 D] or [B, H, N, 2 D] after a reduction.
        """
        mixed = isinstance(self.rope, RotaryEmbeddingMixed)
        if position is self.unreduced:
            return self.table[block] if mixed else self.table
        if self.rope.training and self.rope.aug_active:
            raise UsageError(
                "rotary coordinates that are shifted or scaled at random in training are not supported: timm draws "
                "them for the whole grid, and reduced tokens cannot follow; set rope.aug_active = False"
            )
        if mixed:
            return mixed_rotation(self.rope, position, block).to(self.table.dtype)
        if position is not self.latest:
            self.latest = position
            self.rotation = axial_rotation(self.rope, position, self.grid).to(self.table.dtype)
        return self.rotation


def axial_rotation(rope: nn.Module, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """position [B, N, 2] -> [B, 1, N, 2 D]: the angle of a frequency is proportional to the row, or to the column."""
    centred = isinstance(rope, RotaryEmbeddingDinoV3)
    coordinates = centred_coordinates if centred else index_coordinates
    place = coordinates(rope, position, grid)
    if rope.grid_indexing == "xy":
        place = place.flip(-1)
    place = place[..., None]
    angle = 2 * math.pi * place / rope.periods if centred else place * rope.bands
    return sine_and_cosine(angle.flatten(-2), rope.rotate_half)[:, None]


def index_coordinates(rope: RotaryEmbeddingCat, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rows and columns, scaled from the grid to the one that the model was trained on, if it names one."""
    place = position + rope.grid_offset
    if rope.ref_feat_shape is None:
        return place
    sides = zip(place.unbind(-1), grid, rope.ref_feat_shape)
    return torch.stack([along / here * there for along, here, there in sides], dim=-1)


def centred_coordinates(rope: RotaryEmbeddingDinoV3, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """The centres of patches from -1 to 1."""
    longest = {"separate": grid, "min": (min(grid),) * 2, "max": (max(grid),) * 2}[rope.normalize_coords]
    sides = zip(position.unbind(-1), longest)
    return 2.0 * torch.stack([(along + 0.5 + rope.grid_offset) / side for along, side in sides], dim=-1) - 1.0


def mixed_rotation(rope: RotaryEmbeddingMixed, position: Tensor, block: int) -> Tensor:
    """position [B, N, 2] -> [B, H, N, 2 D]: the angle of a head's frequency is a weighted sum of row and column."""
    place = position.flip(-1) if rope.grid_indexing == "xy" else position
    first, second = rope.freqs[:, block, :, None, :].float()  # [H, 1, D / 2]
    place = place[:, None, :, :, None]  # [B, 1, N, 2, 1]
    return sine_and_cosine(place[:, :, :, 0] * first + place[:, :, :, 1] * second, half=False)


def sine_and_cosine(angle: Tensor, half: bool) -> Tensor:
    """Angles [..., D / 2] -> sine and cosine [..., 2 D], each twice: in two halves or side by side, as timm turns."""

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value], dim=-1) if half else value.repeat_interleave(2, dim=-1)

    return torch.cat([twice(angle.sin()), twice(angle.cos())], dim=-1)
