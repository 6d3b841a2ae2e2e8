"""Patch dropout: training on a random part of each image's patches, which costs less.

Liu et al., PatchDropout: Economizing Vision Transformers Using Patch Dropout (https://arxiv.org/abs/2208.07220).
"""

from __future__ import annotations

from timm.layers import PatchDropout
from torch import nn

from tpbench.errors import UsageError
from tpbench.vit.model import TokenModel


def drop_patches(model: TokenModel, rate: float) -> None:
    """Let a model in training mode drop this share of its patches at random after the position embedding; 0: none.

    A model in evaluation mode drops none. Raises UsageError for a model with reducers, whose token counts are planned,
    and for a model of timm's Eva family, whose rotary angles would have to be dropped too.
    """
    if not rate:
        if isinstance(model.patch_drop, PatchDropout):
            model.patch_drop = nn.Identity()
        return
    if model.reducers:
        raise UsageError("patch_drop is for the unreduced base: a reduced model has planned the number of its tokens")
    if type(model).positioned is not TokenModel.positioned:
        raise UsageError(f"patch_drop is not supported for {type(model).__name__}: its tokens are rotated by position")
    model.patch_drop = PatchDropout(rate, num_prefix_tokens=model.num_prefix_tokens)
