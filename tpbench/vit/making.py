"""Making timm's models, with weights or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import create_transform
from timm.layers import build_sincos2d_pos_embed
from timm.models import load_checkpoint
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from tpbench import registry
from tpbench.errors import UsageError, in_short

if TYPE_CHECKING:
    from PIL.Image import Image


def create(
    name: str, args: dict[str, Any], pretrained: bool | str = False, sincos: float | None = None
) -> VisionTransformer:
    """A timm model by name.

    pretrained: timm's weights from the hub (True), or those of a file by its path, which must hold every weight of the
    model; timm fits the position embedding to another patch grid. sincos is the temperature of a 2-D sine-cosine start
    of the learned position embedding. Raises UsageError for an unknown name, with the nearest ones, and for weights
    that cannot be loaded or do not fit.
    """
    if not timm.is_model(name):
        raise UsageError(
            f"unknown model {name!r}; {registry.nearest(name, timm.list_models(module='vision_transformer'))}"
        )
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise UsageError(f"the file of pretrained weights {pretrained} does not exist")
    try:
        model = timm.create_model(name, pretrained=pretrained is True, **args)
        if isinstance(pretrained, str):
            # weights_only is explicit, because older timm had another default: no code in a file is executed
            load_checkpoint(model, pretrained, filter_fn=checkpoint_filter_fn, weights_only=True)
    except Exception as error:
        if not pretrained:
            raise UsageError(f"model {name!r} cannot be made: {in_short(error, 200)}") from error
        where = "from the hub" if pretrained is True else f"in {pretrained}"
        why = in_short(error, 200)
        raise UsageError(f"the pretrained weights of {name} {where} cannot be loaded: {why}") from error
    if sincos is not None:
        table = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), model.embed_dim, temperature=sincos)
        with torch.no_grad():
            model.pos_embed.zero_()
            model.pos_embed[0, -len(table) :] = table.to(model.pos_embed)
    return model


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """The images that a timm model's weights expect: mean and std of the channels, and the crop for evaluation.

    A model that does not state them gets timm's default for vision transformers.
    """
    own = getattr(model, "pretrained_cfg", None) or {}
    return {
        "mean": tuple(own.get("mean", (0.5, 0.5, 0.5))),
        "std": tuple(own.get("std", (0.5, 0.5, 0.5))),
        "crop": own.get("crop_pct") or 0.875,
        "crop_mode": own.get("crop_mode", "center"),
        "interpolation": own.get("interpolation", "bicubic"),
    }


def transform(model: nn.Module) -> Callable[[Image], Tensor]:
    """timm's transform from an RGB image to a model's input [C, height, width], with the model's `preprocessing`."""
    how = preprocessing(model)
    return create_transform(
        input_size=(model.in_chans, *model.patch_embed.img_size),
        is_training=False,
        mean=how["mean"],
        std=how["std"],
        crop_pct=how["crop"],
        crop_mode=how["crop_mode"],
        interpolation=how["interpolation"],
    )


def hub_classes(name: str) -> int:
    """The number of classes of a timm model's weights on the hub; for another number timm makes a new head."""
    return timm.get_pretrained_cfg(name).num_classes
