"""Parameter groups with their learning rates, and what changes between epochs: freezing and patch dropout."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_weight_decay

from tpbench.errors import UsageError
from tpbench.recipe import Optim
from tpbench.vit import TokenViT


def backbone_lr_scale(model: TokenViT, optim: Optim) -> float:
    """The backbone's learning rate relative to lr: the recipe's, or else the method's."""
    if optim.backbone_lr_scale is not None:
        return optim.backbone_lr_scale
    return model.reducers[-1].backbone_lr_scale if model.reducers else 1.0


def frozen_share(model: TokenViT, optim: Optim) -> float:
    """The share of the epochs in which the backbone is frozen: the recipe's, or else the method's."""
    if optim.frozen_share is not None:
        return optim.frozen_share
    return model.reducers[-1].frozen_share if model.reducers else 0.0


def patch_drop(optim: Optim, epoch: int) -> float:
    """The share of its patches that every training image loses in an epoch (counted from 0)."""
    if not 0 <= optim.patch_drop < 1 or not 0 <= optim.patch_drop_until <= 1:
        raise UsageError(
            f"patch_drop={optim.patch_drop} must lie in [0, 1), patch_drop_until={optim.patch_drop_until} in [0, 1]"
        )
    return optim.patch_drop if epoch < round(optim.patch_drop_until * optim.epochs) else 0.0


def parameter_groups(model: TokenViT, optim: Optim) -> list[dict[str, Any]]:
    """timm's groups (no decay for biases, norms and tokens), each split into the backbone's and the method's own."""
    own = {id(p) for reducer in model.reducers for p in reducer.parameters()}
    scale = backbone_lr_scale(model, optim)
    groups = []
    for group in param_groups_weight_decay(model, optim.weight_decay, model.no_weight_decay()):
        for mine in (False, True):
            members = [p for p in group["params"] if (id(p) in own) == mine]
            if members:
                rate = {"lr_scale": optim.new_lr_scale} if mine else {"lr_scale": scale, "backbone": True}
                groups.append({**group, "params": members, **rate})
    return groups
