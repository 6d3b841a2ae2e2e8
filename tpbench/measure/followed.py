"""Which token each patch belongs to after every reducing block, for pictures and tables."""

from __future__ import annotations

import torch
from torch import Tensor

from tpbench.errors import UnsupportedModel
from tpbench.report.pictures import Stage
from tpbench.vit import TokenModel


@torch.no_grad()
def follow(model: TokenModel, images: Tensor, seed: int) -> list[Stage]:
    """One Stage for each block of the schedule. images: [B, C, H, W]; seed: for methods that draw random numbers.

    Raises UnsupportedModel if the method does not report which patches its tokens are made of.
    """
    torch.manual_seed(seed)
    blocks = {block for block, _ in model.requested}
    stages = []
    for block, tokens in enumerate(model.after_each_block(images, provenance=True)):
        if block not in blocks:
            continue
        if tokens.provenance is None:
            raise UnsupportedModel("it does not say which patches its tokens are made of")
        known = tokens.provenance.without_dead(tokens.alive)
        stages.append(
            Stage(
                block=block,
                grid=known.grid,
                owner=known.owner.cpu().numpy(),
                patch=known.patch.cpu().numpy(),
                exact=known.exact,
            )
        )
    return stages
