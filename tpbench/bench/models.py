"""The models of a recipe: its unreduced base, and that base reduced as one row of the table says."""

from __future__ import annotations

from typing import Any

import torch

from tpbench import vit
from tpbench.errors import UsageError
from tpbench.recipe import Recipe
from tpbench.registry import Variant
from tpbench.schedule import Schedule


def settings(recipe: Recipe, variant: Variant) -> tuple[str, dict[str, Any]]:
    """Where a variant reduces, and the settings of its method: its own before the recipe's."""
    knobs = recipe.knobs.get(variant.method, {}) | dict(variant.settings)
    return knobs.pop("site", recipe.site), knobs


def reduced(recipe: Recipe, model: torch.nn.Module, variant: Variant, schedule: Schedule) -> vit.TokenViT:
    """A recipe's model reduced as one row of its table says."""
    site, knobs = settings(recipe, variant)
    return vit.reduce(model, variant.method, schedule, site=site, **knobs)


def build_base(recipe: Recipe, seed: int) -> torch.nn.Module:
    """The recipe's unreduced timm model with the seed's first weights."""
    torch.manual_seed(seed)
    if recipe.pretrained is True and not recipe.finetune.epochs:
        own = recipe.model_args.get("num_classes", vit.hub_classes(recipe.model))
        if own != vit.hub_classes(recipe.model):
            raise UsageError(
                f"the hub's weights of {recipe.model} are for {vit.hub_classes(recipe.model)} classes, recipe"
                f" {recipe.name} has {own}: without training the head would be random; give --pretrained a file"
            )
    return vit.create(recipe.model, recipe.model_args, recipe.pretrained, recipe.sincos)
