"""The models of a recipe: its unreduced base, and that base reduced as one row of the table says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tpbench import vit
from tpbench.bench.plan import Plan
from tpbench.errors import Unreachable, UsageError
from tpbench.recipe import Recipe
from tpbench.registry import Variant
from tpbench.schedule import Schedule


def settings(recipe: Recipe, variant: Variant) -> tuple[str, dict[str, Any]]:
    """Where a variant reduces, and the settings of its method: its own before the recipe's."""
    knobs = recipe.knobs.get(variant.method, {}) | dict(variant.settings)
    return knobs.pop("site", recipe.site), knobs


def reduced(recipe: Recipe, model: nn.Module, variant: Variant, schedule: Schedule) -> vit.TokenViT:
    """A recipe's model reduced as one row of its table says."""
    site, knobs = settings(recipe, variant)
    return vit.reduce(model, variant.method, schedule, site=site, **knobs)


def build_base(recipe: Recipe, seed: int) -> nn.Module:
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


def check_rows(plan: Plan, rows: Iterable[tuple[Variant, Schedule]]) -> None:
    """Build every row once, untrained, so that what cannot be reached or built is refused before any training."""
    model = build_base(plan.recipe, seed=0)
    for schedule in plan.reducing_schedules:
        schedule.check(len(model.blocks))
    for variant, schedule in rows:
        try:
            reduced(plan.recipe, model, variant, trial(schedule, model))
        except Unreachable:
            if not plan.holes:
                raise


def trial(schedule: Schedule, model: nn.Module) -> Schedule:
    """A schedule with which to build a method before anything runs; for a share of latency, nothing is reduced."""
    if schedule.latency_share is None:
        return schedule
    return schedule.counting([model.patch_embed.num_patches] * len(schedule.blocks))
