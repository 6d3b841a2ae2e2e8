"""The models of a recipe: its unreduced base, and that base reduced as a row of the table describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tpbench import vit
from tpbench.bench.plan import Plan
from tpbench.errors import Unreachable, UsageError
from tpbench.measure import live_budget
from tpbench.recipe import Recipe
from tpbench.record import Seeds
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule

MOST_FINETUNE_SEEDS = 1_000
FINETUNE_SEED_STEP = 1_000_000  # larger than any cell's seed


class Settings(NamedTuple):
    """The settings of a variant: the site where it reduces, its fine-tuning seed, and those of the method.

    live: whether only living tokens count towards a share of the MACs, and padding does not.
    """

    site: str
    finetune_seed: int
    live: bool
    method: dict[str, Any]


def settings(recipe: Recipe, variant: Variant) -> Settings:
    """The settings of a variant; its own replace the recipe's. Raises UsageError for impossible ones."""
    method = recipe.knobs.get(variant.method, {}) | dict(variant.settings)
    site = method.pop("site", recipe.site)
    finetune_seed = method.pop("finetune_seed", 0)
    if type(finetune_seed) is not int or not 0 <= finetune_seed < MOST_FINETUNE_SEEDS:
        raise UsageError(f"{variant}: finetune_seed must be a whole number from 0 to {MOST_FINETUNE_SEEDS - 1}")
    live = method.pop("live", False)
    if type(live) is not bool:
        raise UsageError(f"{variant}: live must be True or False")
    if live and variant.card.count != "at_most":
        raise UsageError(f"{variant}: live=True is for methods that may keep fewer tokens than asked, such as ats")
    return Settings(site, finetune_seed=finetune_seed, live=live, method=method)


def cell_seeds(recipe: Recipe, variant: Variant, seed: int) -> Seeds:
    """The seeds of a cell's split, base and fine-tuning, all of which follow from its one seed.

    The setting finetune_seed=1, 2, ... fine-tunes the same base again, with another order and augmentation of the
    images: such a row shows how much two runs of one method differ.
    """
    again = settings(recipe, variant).finetune_seed
    return {"split": split_seed(recipe, seed), "base": seed, "finetune": seed + again * FINETUNE_SEED_STEP}


def split_seed(recipe: Recipe, seed: int) -> int:
    """The seed of the split into training and test images. A recipe without folds has a single split."""
    return seed if recipe.data.folds else 0


def reduced(recipe: Recipe, model: nn.Module, variant: Variant, schedule: Schedule) -> vit.TokenViT:
    """A recipe's model reduced by a variant at a schedule. Raises what `vit.reduce` raises."""
    own = settings(recipe, variant)
    return vit.reduce(model, variant.method, schedule, site=own.site, **own.method)


def with_live_budget(
    recipe: Recipe, model: nn.Module, variant: Variant, schedule: Schedule, images: Callable[[], Tensor]
) -> Schedule:
    """The schedule of a row; with live=True, the counts at which its living tokens cost the schedule's share of MACs.

    images() returns [B, C, H, W] that no test uses. Raises UsageError if live=True and the schedule is no such share.
    """
    if not settings(recipe, variant).live:
        return schedule
    if schedule.kind is not Kind.MACS:
        raise UsageError(f"{variant}: live=True needs a share of the MACs, such as macs=0.5@3,6,9, not {schedule.text}")
    reduced_at = partial(reduced, recipe, model, variant)
    return live_budget.solve(schedule, base=model, reduced=reduced_at, images=images())


def build_base(recipe: Recipe, seed: int) -> nn.Module:
    """The recipe's unreduced timm model, with the initial weights of a seed or pretrained ones.

    Raises UsageError if nothing is trained and the hub's weights do not fit the head, which would stay random.
    """
    torch.manual_seed(seed)
    if recipe.pretrained is True and not recipe.finetune.epochs:
        own = recipe.model_args.get("num_classes", vit.hub_classes(recipe.model))
        if own != vit.hub_classes(recipe.model):
            raise UsageError(
                f"the hub's weights of {recipe.model} are for {vit.hub_classes(recipe.model)} classes, recipe"
                f" {recipe.name} has {own}: without training the head would be random; give --pretrained a file"
            )
    return vit.create(recipe.model, recipe.model_args, pretrained=recipe.pretrained, sincos=recipe.sincos)


def check_rows(plan: Plan, rows: Iterable[tuple[Variant, Schedule]]) -> None:
    """Build every row once, untrained, so that a row that cannot be built is rejected before any training.

    Raises ScheduleError or UsageError, except for budgets that a method cannot meet if the plan allows holes.
    """
    model = build_base(plan.recipe, seed=0)
    for schedule in plan.reducing_schedules:
        schedule.check(len(model.blocks))
    for variant, schedule in rows:
        try:
            reduced(plan.recipe, model, variant=variant, schedule=with_placeholder_counts(schedule, model))
        except Unreachable:
            if not plan.holes:
                raise


def with_placeholder_counts(schedule: Schedule, model: nn.Module) -> Schedule:
    """The schedule with which to build a method before anything is measured.

    A share of the latency, whose counts are not known yet, is replaced by counts that keep every token.
    """
    if schedule.kind is Kind.LATENCY:
        return schedule.with_counts([model.patch_embed.num_patches] * len(schedule.blocks))
    return schedule
