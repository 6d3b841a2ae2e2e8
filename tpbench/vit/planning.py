"""The plan of a reduced model: how many tokens arrive at each reducing block and how many must be left."""

from __future__ import annotations

from torch import nn

from tpbench.downsampler import Downsampler, Needs, Setup
from tpbench.errors import UnsupportedModel
from tpbench.schedule import Schedule


def plan(
    model: nn.Module,
    cls: type[Downsampler],
    schedule: Schedule,
    config: Downsampler.Config | None = None,
    grid: tuple[int, int] | None = None,
) -> tuple[list[Setup], tuple[tuple[int, int], ...]]:
    """The Setup of every block that reduces, and the (block, K) pairs that were asked for.

    grid: rows and columns of the patches; by default those of the model's own image size.
    """
    grid = tuple(model.patch_embed.grid_size) if grid is None else grid
    patches = grid[0] * grid[1]
    requested = tuple(zip(schedule.blocks, schedule.requested(patches, len(model.blocks))))
    if cls.asks(config or cls.Config()) & Needs.CLS and model.cls_token is None:
        raise UnsupportedModel(f"{cls.__name__} reads the class token's attention, and this model has no class token")
    setups = []
    n = patches
    for stage, (block, k) in enumerate(requested):
        reached, next_grid = cls.reachable(n, min(k, n), grid)
        if reached < n or cls.masks:  # otherwise there is nothing to remove
            setups.append(
                Setup(
                    block=block,
                    stage=stage,
                    stages=len(requested),
                    tokens=n,
                    k=reached,
                    patches=patches,
                    width=model.embed_dim,
                    heads=model.blocks[block].attn.num_heads,
                    grid=grid,
                    prefix=model.num_prefix_tokens,
                )
            )
            if not cls.masks:
                n = reached
                grid = next_grid
    return setups, requested
