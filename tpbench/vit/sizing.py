"""Images of another size than the model was reduced for: its reducers are planned anew for their patch grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tpbench.downsampler import Downsampler, Setup
from tpbench.errors import ScheduleError, UsageError
from tpbench.vit.planning import plan

if TYPE_CHECKING:
    from tpbench.vit.model import TokenModel


@contextmanager
def planned_for(model: TokenModel, grid: tuple[int, int]) -> Iterator[None]:
    """Within the block, give the model reducers for another patch grid; afterwards it has its own again.

    Raises UsageError if the schedule or a method's weights fit one size only.
    """
    planned = tuple(model.patch_embed.grid_size)
    own = {block: block.reducer for block in model.blocks}
    if grid == planned or not any(own.values()):
        yield
        return
    others = {reducer.setup.block: reducer for reducer in reducers_for(model, grid)}
    try:
        for index, block in enumerate(model.blocks):
            block.reducer = others.get(index)
        yield
    finally:
        for block, reducer in own.items():
            block.reducer = reducer


def reducers_for(model: TokenModel, grid: tuple[int, int]) -> list[Downsampler]:
    """Reducers for another patch grid by the same schedule, with the weights of the model's own."""
    own = {reducer.setup.block: reducer for reducer in model.reducers}
    first = model.reducers[0]
    patches = grid[0] * grid[1]
    if model.schedule is None or model.schedule.budget is not None:
        planned = model.patch_embed.num_patches
        raise UsageError(
            f"the token counts were solved for {planned} patch tokens, these images give {patches}: give a keep rate "
            "or counts, or reduce the model at that size"
        )
    try:
        setups, _ = plan(model, cls=type(first), schedule=model.schedule, config=first.config, grid=grid)
    except ScheduleError as error:
        raise UsageError(f"these images give {patches} patch tokens: {error}") from error
    return [resized(own.get(setup.block), setup, first) for setup in setups]


def resized(own: Downsampler | None, setup: Setup, like: Downsampler) -> Downsampler:
    """A reducer of the same kind for another setup, which shares the weights of the model's own at that block."""
    with torch.device("meta"):  # shapes decide; no weight is made
        other = type(like)(setup, like.config)
    theirs = {name: value.shape for name, value in (own.state_dict() if own is not None else {}).items()}
    if theirs != {name: value.shape for name, value in other.state_dict().items()}:
        raise UsageError(
            f"{type(like).__name__} has no weights for images of another size at block {setup.block}, where"
            f" {setup.tokens} tokens arrive"
        )
    if own is not None:
        for module, source in zip(other.modules(), own.modules(), strict=True):
            module._parameters = source._parameters
            module._buffers = source._buffers
    return other.train(like.training)
