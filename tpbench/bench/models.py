"""The models of a recipe: its unreduced base, and that base reduced as one row of the table says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from tpbench import vit
from tpbench.bench.plan import Plan
from tpbench.errors import Unreachable, UsageError
from tpbench.recipe import Recipe
from tpbench.record import Seeds
from tpbench.registry import Variant
from tpbench.schedule import Schedule

MOST_FINETUNE_SEEDS = 1_000
FINETUNE_SEED_STEP = 1_000_000  # larger than any cell's seed


class Settings(NamedTuple):
    """What a variant asks for: where it reduces, which of several fine-tuning seeds, and its method's settings."""

    site: str
    finetune_seed: int
    method: dict[str, Any]


def settings(recipe: Recipe, variant: Variant) -> Settings:
    """The settings of a variant: its own before the recipe's. Raises UsageError for an impossible finetune_seed."""
    method = recipe.knobs.get(variant.method, {}) | dict(variant.settings)
    site = method.pop("site", recipe.site)
    finetune_seed = method.pop("finetune_seed", 0)
    if type(finetune_seed) is not int or not 0 <= finetune_seed < MOST_FINETUNE_SEEDS:
        raise UsageError(f"{variant}: finetune_seed is a whole number from 0 to {MOST_FINETUNE_SEEDS - 1}")
    return Settings(site, finetune_seed, method)


def seeds(recipe: Recipe, variant: Variant, seed: int) -> Seeds:
    """What a cell's seed stands for.

    Everything follows from the one number, save that finetune_seed=1, 2, ... fine-tunes the same base once more with
    another order and augmentation of the images: a row that shows what no difference looks like.
    """
    again = settings(recipe, variant).finetune_seed
    return {"split": split(recipe, seed), "base": seed, "finetune": seed + again * FINETUNE_SEED_STEP}


def split(recipe: Recipe, seed: int) -> int:
    """The seed of the split into training and test images; recipes without folds have one split."""
    return seed if recipe.data.folds else 0


def reduced(recipe: Recipe, model: nn.Module, variant: Variant, schedule: Schedule) -> vit.TokenViT:
    """A recipe's model reduced as one row of its table says."""
    own = settings(recipe, variant)
    return vit.reduce(model, variant.method, schedule, site=own.site, **own.method)


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
